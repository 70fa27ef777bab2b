#!/bin/sh
# Installs the project and what it needs into /opt/deeplense, as root in Debian 12: the one recipe of every kind of image.
# Usage: install.sh SOURCE, a folder with pyproject.toml, requirements.lock and the packages; it is removed at the end.
set -eu
source=$1
python=/opt/deeplense/bin/python
export DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

apt-get -qq update
apt-get -qq install -y --no-install-recommends ca-certificates python3 python3-venv > /dev/null
python3 -m venv /opt/deeplense
$python -m pip install --quiet --upgrade pip
$python -m pip install --quiet --constraint "$source/requirements.lock" "$source[compress]"

$python -m pip freeze --exclude deeplense > /tmp/installed
if grep -vxFf "$source/requirements.lock" /tmp/installed; then
    echo "install.sh: these are not in requirements.lock; freeze it anew (CONTRIBUTING.md)" >&2
    exit 1
fi
install -m 755 "$source/containers/check.sh" /opt/deeplense/check.sh
rm -rf "$source" /tmp/installed /var/lib/apt/lists/* /var/cache/apt/*.bin

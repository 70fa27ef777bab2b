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
$python -m pip install --quiet --require-hashes --no-deps --only-binary :all: --requirement "$source/requirements.lock"
$python -m pip install --quiet --no-deps --no-build-isolation "$source"
$python -m pip check || { echo "install.sh: requirements.lock lacks something; make lock renews it (CONTRIBUTING.md)" >&2; exit 1; }

$python "$source/containers/sbom.py" > /opt/deeplense/sbom.json
install -m 755 "$source/containers/check.sh" /opt/deeplense/check.sh
rm -rf "$source" /var/lib/apt/lists/* /var/cache/apt/*.bin

#!/usr/bin/env bash
# Unpacks Slurm of another Debian suite, with all that it needs, beside the system: as root on Debian, from the machine's
# own Debian source with the suite's name changed. Takes a minute and 480 MB.
# Usage: prepare.sh SUITE ROOT; ROOT is then what a box has as its root (see boxes.py).
set -euo pipefail
suite=$1 destination=$2
work=$(mktemp -d)
exec 3>&1 > "$work/log" 2>&1
trap 'code=$?; [ $code = 0 ] || { echo "$0 failed; the end of its log:"; tail -n 20 "$work/log"; } >&3; rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root" "$work"/{lists,archives}/partial
: > "$work/status"     # nothing is installed, so that apt takes all that is needed

mirror=$(apt-get indextargets --format '$(SITE)' 'Identifier: Packages' "Release: $(. /etc/os-release && echo "$VERSION_CODENAME")" | head -n 1)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$work/sources.list"
private="-o Dir::Etc::sourcelist=$work/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::lists=$work/lists
    -o Dir::State::status=$work/status -o Dir::State::extended_states=$work/extended -o Dir::Cache::archives=$work/archives
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root -o APT::Install-Recommends=false"
programs="base-files base-passwd bash coreutils dash findutils git grep hostname iproute2 libc-bin mawk mount procps sed util-linux
    mariadb-server munge slurm-client slurm-wlm-basic-plugins slurm-wlm-mysql-plugin slurmctld slurmd slurmdbd"
libraries="libbz2-1.0 libexpat1 libffi8 libgomp1 liblzma5 libncursesw6 libreadline8t64 libsqlite3-0 libssl3t64 libstdc++6 libuuid1 zlib1g"
apt-get $private update
apt-get $private install -y --download-only $programs $libraries

# No script of a package runs: what matters of them is done below.
dpkg -x "$work"/archives/base-files_*.deb "$root"
for package in "$work"/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$root" --keep-directory-symlink -f -
done
cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
for each in slurm:64030 munge:970 mysql:971; do
    echo "${each%:*}:x:${each#*:}:${each#*:}::/nonexistent:/usr/sbin/nologin" >> "$root/etc/passwd"
    echo "${each%:*}:x:${each#*:}:" >> "$root/etc/group"
done
[ -e "$root/usr/bin/sh" ] || ln -s dash "$root/usr/bin/sh"
[ -e "$root/usr/bin/awk" ] || ln -s mawk "$root/usr/bin/awk"
# slurmd finds a user's environment by su, where a job is submitted with --export=NONE.
for name in su su-l other; do
    printf 'auth sufficient pam_rootok.so\naccount required pam_permit.so\nsession required pam_permit.so\n' > "$root/etc/pam.d/$name"
done
printf 'passwd: files\ngroup: files\nhosts: files\n' > "$root/etc/nsswitch.conf"
for name in slurmctld slurmd slurmstepd; do
    ln -sf "$name-wlm" "$root/usr/sbin/$name"
done
# With the newer libmariadb the first query of slurmdbd fails; the machine's own, of Debian 12, works.
libraries=usr/lib/$(uname -m)-linux-gnu
cp -L "/$libraries/libmariadb.so.3" "$root/$libraries/libmariadb.so.3"
chroot "$root" /sbin/ldconfig
chroot "$root" /usr/sbin/slurmctld -V

mkdir -p "$(dirname "$destination")"
rm -rf "$destination"
mv "$root" "$destination"

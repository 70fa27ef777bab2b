#!/usr/bin/env bash
# Builds the Apptainer image of this checkout, tests it, and names it by version and commit.
set -euo pipefail
usage="usage: containers/build.sh [--base registry|debootstrap] [--from IMAGE] [--mirror ADDRESS] [--output FOLDER]

  --base    registry: start from IMAGE of a container registry (default);
            debootstrap: from Debian's packages, where no registry can be reached
  --from    the image of Debian 12 to start from (default: debian:bookworm-slim)
  --mirror  where debootstrap finds Debian (default: what apt uses on this machine)
  --output  folder of the image deeplense-VERSION-COMMIT[-dirty].sif, of its log, and of the list of all packages in it
            (.sbom.json, CycloneDX; in the image it is /opt/deeplense/sbom.json) (default: containers/images)

Apptainer unpacks in APPTAINER_TMPDIR (default: /tmp), on a local disk. pip's settings are taken from
PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST, PIP_CERT and the variables of proxies; they do not stay in the image."

fail() {
    echo "build.sh: $*" >&2
    exit 2
}

need() {
    command -v "$1" > /dev/null || fail "the program $1 is missing; $2"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
base=registry from=debian:bookworm-slim mirror="" output="$root/containers/images"
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) echo "$usage" && exit ;;
        --base | --from | --mirror | --output) [ $# -gt 1 ] || fail "$1 needs a value; see --help" ;;
        *) fail "$1 is not known; see --help" ;;
    esac
    printf -v "${1#--}" %s "$2"
    shift 2
done

need apptainer "install Apptainer 1.4 or newer (on Debian 12, as root: .ci/apptainer)"
case $base in
    registry) bootstrap=docker ;;
    debootstrap)
        bootstrap=debootstrap
        PATH=$PATH:/usr/sbin
        need debootstrap "install Debian's package debootstrap"
        if [ -z "$mirror" ]; then
            mirror=$(apt-get indextargets --format '$(SITE)' 'Identifier: Packages' 'Release: bookworm' 2> /dev/null | head -n 1)
        fi
        [ -n "$mirror" ] || fail "apt of this machine knows no source of Debian 12 (bookworm); give one: --mirror ADDRESS"
        ;;
    *) fail "--base $base is not known; registry or debootstrap would be" ;;
esac

files=(deeplense jobs launch containers/{deeplense.def,install.sh,check.sh,sbom.py} pyproject.toml requirements.lock README.md LICENSE)
cd "$root"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
commit=$(git rev-parse --short=12 HEAD) || fail "$root is no git checkout, and an image is named by its commit"
[ -z "$(git status --porcelain -- "${files[@]}" containers/build.sh)" ] || commit=$commit-dirty
mkdir -p "$output"
output=$(cd "$output" && pwd)
image=$output/deeplense-$version-$commit.sif
log=${image%.sif}.log
bill=${image%.sif}.sbom.json

export APPTAINER_TMPDIR=${APPTAINER_TMPDIR:-${TMPDIR:-/tmp}}
needed_gb=12
free_gb=$(df --output=avail -BG "$APPTAINER_TMPDIR" | tail -n 1 | tr -dc 0-9)
[ "$free_gb" -ge $needed_gb ] ||
    fail "$APPTAINER_TMPDIR has $free_gb GB, the build needs $needed_gb; set APPTAINER_TMPDIR to a local disk with more"

# The sources as they are now, and the certificates that this machine trusts: a site's proxy may sign with its own.
work=$(mktemp -d)
trap 'rm -rf "$work" "$image.new" "$bill.new"' EXIT
mkdir "$work/source" "$work/machine"
cp -r --parents "${files[@]}" "$work/source"
certificates=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}
if [ -f "$certificates" ]; then
    cp "$certificates" "$work/machine/certificates.crt"
    export APPTAINERENV_PIP_CERT=/mnt/certificates.crt
fi
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST {http,https,no}_proxy {HTTP,HTTPS,NO}_PROXY; do
    [ -z "${!name:-}" ] || export "APPTAINERENV_$name=${!name}"
done

# zstd, not gzip: it packs in a minute instead of twelve, and torch is imported in half the time.
# squashfuse and Linux 4.14 read it.
packing="-comp zstd -Xcompression-level 3"

# Root in a machine that is itself a container may lack CAP_SYS_RESOURCE (bit 24), which Apptainer asks for;
# in a user namespace it has it.
build=(apptainer build) test=(apptainer test) exec=(apptainer exec)
capabilities=0x$(sed -n 's/^CapEff:\s*//p' /proc/self/status)
if [ "$(id -u)" = 0 ] && ((!(capabilities >> 24 & 1))); then
    build+=(--fakeroot) test+=(--userns) exec+=(--userns)
    grep -qs ^root: /etc/subuid ||
        fail "root without CAP_SYS_RESOURCE needs ids of its own: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 root"
fi

step() {
    echo "build.sh: $1"
    shift
    "$@" >> "$log" 2>&1 && return
    echo "build.sh: that failed; the end of $log:" >&2
    tail -n 20 "$log" >&2
    if [ $base = registry ] && grep -q 'FATAL.*conveyor' "$log"; then
        echo "build.sh: where no registry can be reached: --base debootstrap" >&2
    fi
    exit 1
}

: > "$log"
cd "$work/source"
step "building $image from $base; this takes about ten minutes, see $log" \
    "${build[@]}" --force --notest --mksquashfs-args "$packing" --bind "$work/machine:/mnt" \
    --build-arg bootstrap=$bootstrap --build-arg from="$from" --build-arg mirror="$mirror" \
    --build-arg version="$version" --build-arg commit="$commit" "$image.new" containers/deeplense.def
step "testing it: imports, simulate, train, evaluate" "${test[@]}" --cleanenv --no-home "$image.new"
"${exec[@]}" --cleanenv --no-home "$image.new" cat /opt/deeplense/sbom.json > "$bill.new" 2>> "$log" ||
    fail "the list of packages in the image cannot be read; see $log"
mv "$bill.new" "$bill"
mv "$image.new" "$image"
echo "build.sh: $image ($(du -h "$image" | cut -f 1))"

#!/usr/bin/env bash
# The first process of a box, in namespaces of its own for mounts, network, host name and shared memory (see boxes.py).
# Mounts what programs need, and each PATH of the machine at the same place; READY is made when the box can be entered.
# Usage: inside.sh ROOT READY PATH ...
set -euo pipefail
root=$1 ready=$2
shift 2
mkdir -p "$root"/{proc,sys,dev,tmp,run}
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs tmpfs "$root/run"
mkdir "$root/run/netns" "$root/run/lock"
for path in "$@"; do
    if [ -d "$path" ]; then
        mkdir -p "$root$path"
    else
        mkdir -p "$(dirname "$root$path")"
        touch "$root$path"
    fi
    mount --rbind "$path" "$root$path"
done
touch "$root/etc/hosts"
printf '127.0.0.1 localhost %s\n' "$(hostname)" > "$root/run/hosts"
mount --bind "$root/run/hosts" "$root/etc/hosts"
ip link set lo up
exec chroot "$root" /bin/sh -c "touch '$ready' && exec sleep infinity"

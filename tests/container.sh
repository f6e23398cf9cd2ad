#!/bin/sh
# Becomes a service's process in a network and a file tree of its own, as in its container. Run by tests/containers.py
# within namespaces that are made already.
#
#   container.sh SWITCH ROOT HOSTS NETWORKS VOLUMES DIRECTORY COMMAND …
#
# SWITCH    process whose namespace holds a bridge for each network
# NETWORKS  "NAME=ADDRESS/BITS …": an interface each, its other end at the bridge of that name
# HOSTS     its /etc/hosts; HOSTS.ready is there as soon as all of this is
# VOLUMES   "SOURCE:TARGET …": folders or files, seen at another path; the rest of the machine is read-only
set -eu
switch=$1 root=$2 hosts=$3 networks=$4 volumes=$5 directory=$6
shift 6

ip link set lo up
for network in $networks; do
    name=${network%%=*}
    ip link add "$name" type veth peer name "$name-$$" netns "$switch"
    ip address add "${network#*=}" dev "$name"
    ip link set "$name" up
    nsenter --target "$switch" --net ip link set "$name-$$" master "$name" up
done

mount -t tmpfs tree "$root"
for top in /*; do
    if [ -L "$top" ]; then
        cp -P "$top" "$root$top"
    elif [ -d "$top" ] && [ "$top" != /run ]; then
        mkdir "$root$top"
        mount --rbind "$top" "$root$top"
        case $top in /dev | /proc | /sys | /tmp) ;; *) mount -o remount,bind,ro "$root$top" ;; esac
    fi
done
mount --bind "$hosts" "$root/etc/hosts"
for volume in $volumes; do
    source=${volume%%:*} target=$root${volume#*:}
    if [ -d "$source" ]; then mkdir -p "$target"; else mkdir -p "${target%/*}"; touch "$target"; fi
    mount --bind "$source" "$target"
done
touch "$hosts.ready"
cd "$root"
exec chroot . sh -c 'cd "$1"; shift; exec "$@"' sh "$directory" "$@"

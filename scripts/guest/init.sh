#!/bin/sh
# First process of a guest: loads modules, runs /command with its output on the port
# "cleave.output" and its input from "cleave.input", reports its exit status on the port
# "cleave.status", powers off.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
ip link set lo up
while read -r module; do
    insmod "/modules/$module.ko" || echo "guest: module $module cannot be loaded"
done </modules/order
port() {
    for entry in /sys/class/virtio-ports/*; do
        [ "$(cat "$entry/name" 2>/dev/null)" = "$1" ] && echo "/dev/${entry##*/}"
    done
}
tries=0
while [ -z "$(port cleave.output)" ] || [ -z "$(port cleave.status)" ] ||
    [ -z "$(port cleave.input)" ]; do
    tries=$((tries + 1))
    [ "$tries" -gt 300 ] && echo "guest: the ports did not appear" && poweroff -f
    sleep 0.1
done
output=$(port cleave.output)
status=$(port cleave.status)
echo up >"$status"
cd /root || exit
sh /command >"$output" 2>&1 <"$(port cleave.input)"
echo "exit $?" >"$status"
sync
poweroff -f

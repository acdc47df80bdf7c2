#!/bin/sh
# NVMe controllers and hugepages for the userspace driver.
#
#   devices.sh list                    controllers, their drivers, their block devices
#   devices.sh take ADDRESS [DRIVER]   give one to vfio-pci (default), or to no driver with "none"
#   devices.sh return ADDRESS          give it back to the kernel's nvme driver
#   devices.sh hugepages COUNT         have at least COUNT hugepages of 2 MiB
#
# Doing what is done already changes nothing. A controller whose block devices are mounted, swapped
# to, held by another device (LVM, RAID, encryption) or opened exclusively is refused.
set -eu
pci=/sys/bus/pci
pages=/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages

die() {
    echo "devices.sh: $*" >&2
    exit 1
}

driver_of() {
    [ -e "$pci/devices/$1/driver" ] || return 0
    basename "$(readlink "$pci/devices/$1/driver")"
}

# Block devices of a controller and their partitions, as folders of sysfs.
blocks_of() {
    for block in "$pci/devices/$1"/nvme/nvme*/nvme*n*; do
        [ -e "$block/size" ] || continue
        echo "$block"
        for part in "$block"/nvme*p*; do
            [ -e "$part/partition" ] && echo "$part"
        done
    done
    return 0
}

refuse_if_used() {
    for block in $(blocks_of "$1"); do
        name=$(basename "$block")
        numbers=$(cat "$block/dev")
        # Field 3 of mountinfo is the device's numbers, whatever name it was mounted by.
        if awk -v d="$numbers" '$3 == d { found = 1 } END { exit !found }' /proc/self/mountinfo; then
            die "$1 is refused: /dev/$name is mounted"
        fi
        if grep -q "^/dev/$name[[:space:]]" /proc/swaps; then
            die "$1 is refused: /dev/$name is swap space"
        fi
        for holder in "$block"/holders/*; do
            [ -e "$holder" ] && die "$1 is refused: /dev/$name is used by $(basename "$holder")"
        done
    done
    return 0
}

check_address() {
    [ -e "$pci/devices/$1/class" ] || die "there is no PCI device $1"
    [ "$(cat "$pci/devices/$1/class")" = 0x010802 ] || die "$1 is no NVMe controller"
}

give() {
    [ "$(driver_of "$1")" = "$2" ] && return 0
    if [ -e "$pci/devices/$1/driver" ]; then
        echo "$1" >"$pci/devices/$1/driver/unbind"
    fi
    if [ -z "$2" ]; then
        return 0
    fi
    echo "$2" >"$pci/devices/$1/driver_override"
    echo "$1" >"$pci/drivers_probe"
    # The kernel's driver is the one that finds the device by itself.
    [ "$2" = nvme ] && echo >"$pci/devices/$1/driver_override"
    [ "$(driver_of "$1")" = "$2" ] || die "$2 did not take $1; is its module loaded?"
}

case "${1-}" in
list)
    for device in "$pci"/devices/*; do
        [ "$(cat "$device/class")" = 0x010802 ] || continue
        address=$(basename "$device")
        driver=$(driver_of "$address")
        names=$(blocks_of "$address" | sed 's|.*/||' | tr '\n' ' ')
        echo "$address ${driver:-no driver} $names"
    done
    ;;
take)
    [ $# -ge 2 ] || die "take ADDRESS [DRIVER]"
    check_address "$2"
    refuse_if_used "$2"
    driver=${3:-vfio-pci}
    [ "$driver" = none ] && driver=
    give "$2" "$driver"
    ;;
return)
    [ $# -eq 2 ] || die "return ADDRESS"
    check_address "$2"
    give "$2" nvme
    ;;
hugepages)
    [ $# -eq 2 ] || die "hugepages COUNT"
    [ "$(cat $pages)" -ge "$2" ] || echo "$2" >$pages
    [ "$(cat $pages)" -ge "$2" ] || die "the kernel gives only $(cat $pages) of $2 hugepages"
    ;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 1
    ;;
esac

#!/bin/sh
# NVMe controllers and hugepages for the userspace driver.
#
#   devices.sh list                     controllers, their drivers, NUMA nodes, block devices, users
#   devices.sh take ADDRESS [DRIVER]    give one to vfio-pci (default), or to no driver with "none"
#   devices.sh return ADDRESS           give it back to the kernel's nvme driver
#   devices.sh hugepages COUNT [SIZE [NODE]]
#                                       have at least COUNT hugepages of SIZE, 2M (default) or 1G,
#                                       of the whole machine or of one NUMA node
#
# Doing what is done already changes nothing. A controller is refused when a block device of it is
# mounted, swapped to, held by another device (LVM, RAID, encryption), claimed by a file system that
# mounts under another name, or open in a process; and when a process drives it.
set -eu
pci=/sys/bus/pci

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

# The files by which programs use a controller: the kernel's of its namespaces, VFIO's, its registers.
files_of() {
    for block in $(blocks_of "$1"); do
        echo "/dev/${block##*/}"
    done
    for character in "$pci/devices/$1"/nvme/nvme* "$pci/devices/$1"/nvme/nvme*/ng*; do
        [ -e "$character/dev" ] && echo "/dev/${character##*/}"
    done
    if [ "$(driver_of "$1")" = vfio-pci ]; then
        echo "/dev/vfio/$(basename "$(readlink "$pci/devices/$1/iommu_group")")"
        for device in "$pci/devices/$1"/vfio-dev/vfio*; do
            [ -e "$device" ] && echo "/dev/vfio/devices/${device##*/}"
        done
    fi
    readlink -f "$pci/devices/$1/resource0"
}

# Processes that have one of the controller's files open.
users_of() {
    files=$(files_of "$1")
    for process in /proc/[0-9]*; do
        for open in "$process"/fd/*; do
            # A process may end while it is looked at.
            file=$(readlink "$open" 2>/dev/null) || continue
            if echo "$files" | grep -qxF "$file"; then
                echo "${process##*/}"
                break
            fi
        done
    done
}

refuse_if_used() {
    for block in $(blocks_of "$1"); do
        name=${block##*/}
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
    users=$(users_of "$1" | tr '\n' ' ')
    [ -z "$users" ] || die "$1 is refused: it is used by process ${users% }"
    for block in $(blocks_of "$1"); do
        # Only what nobody has claimed is read again: also a file system of several devices claims.
        [ -e "$block/partition" ] || blockdev --rereadpt "/dev/${block##*/}" 2>/dev/null ||
            die "$1 is refused: /dev/${block##*/} is claimed; unmount what uses it"
    done
    return 0
}

check_address() {
    [ -e "$pci/devices/$1/class" ] || die "there is no PCI device $1"
    [ "$(cat "$pci/devices/$1/class")" = 0x010802 ] || die "$1 is no NVMe controller"
}

give() {
    [ "$(driver_of "$1")" = "$2" ] && return 0
    refuse_if_used "$1"
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

list() {
    for device in "$pci"/devices/*; do
        [ "$(cat "$device/class")" = 0x010802 ] || continue
        address=${device##*/}
        driver=$(driver_of "$address")
        names=$(blocks_of "$address" | sed 's|.*/||' | tr '\n' ' ')
        users=$(users_of "$address" | tr '\n' ' ')
        echo "$address ${driver:-no driver}, node $(cat "$device/numa_node")${names:+, ${names% }}${users:+, used by process ${users% }}"
    done
}

hugepages() {
    case $2 in
    2M) folder=hugepages-2048kB ;;
    1G) folder=hugepages-1048576kB ;;
    *) die "hugepages are of 2M or 1G, not $2" ;;
    esac
    case $1 in '' | *[!0-9]*) die "hugepages COUNT is a number, not $1" ;; esac
    pages=/sys/kernel/mm/hugepages/$folder/nr_hugepages
    [ -z "$3" ] || pages=/sys/devices/system/node/node$3/hugepages/$folder/nr_hugepages
    [ -e "$pages" ] || die "this machine has no hugepages of $2${3:+ on a node $3}"
    [ "$(cat "$pages")" -ge "$1" ] || echo "$1" >"$pages"
    [ "$(cat "$pages")" -ge "$1" ] ||
        die "the kernel gives only $(cat "$pages") of $1 hugepages of $2; memory is scattered: ask for them when it boots"
}

case "${1-}" in
list)
    list
    ;;
take)
    [ $# -ge 2 ] && [ $# -le 3 ] || die "take ADDRESS [DRIVER]"
    check_address "$2"
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
    [ $# -ge 2 ] && [ $# -le 4 ] || die "hugepages COUNT [SIZE [NODE]]"
    hugepages "$2" "${3:-2M}" "${4-}"
    ;;
*)
    sed -n '2,/^set /{ /^set /d; s/^# \{0,1\}//; p; }' "$0"
    exit 1
    ;;
esac

"""What a QEMU guest sees: file systems, fio with verification, stalls instead of errors."""

import os
import re
import shutil
import time

from cluster import CONTROLLERS, HOST, Cluster
from framework import Failure, check, scenario
from guest import Disk, Guest, GuestError

BOOT_SECONDS = 180
GUEST_SECONDS = 900

# Whole files are compared by their sums, after the file system was filled to the last block.
FILE_SYSTEM = """
set -e
mkfs.ext4 -q -F /dev/vda
mount /dev/vda /mnt
dd if=/dev/urandom of=/tmp/seed bs=1M count=16 2>/dev/null
number=0
while cp /tmp/seed "/mnt/file-$number" 2>/dev/null; do number=$((number + 1)); done
rm "/mnt/file-$number"
echo "filled with $number files"
[ "$number" -ge 4 ]
sync
sum=$(sha256sum /tmp/seed | cut -d' ' -f1)
umount /mnt
e2fsck -fn /dev/vda
mount /dev/vda /mnt
echo 3 >/proc/sys/vm/drop_caches
for file in /mnt/file-*; do
    [ "$(sha256sum "$file" | cut -d' ' -f1)" = "$sum" ] || { echo "$file is damaged"; exit 1; }
done
rm /mnt/file-*
umount /mnt
"""

FIO = """
fio --name=verify --filename=/dev/vda --direct=1 --ioengine=io_uring --iodepth=16 \
    --rw=randwrite --bsrange=4k-64k --size={size} --randrepeat=0 --verify=crc32c --verify_fatal=1 \
    --output-format=normal
"""

# Passes of fio until the test says stop.
FIO_PASSES = """
exec 3<&0
( read -r line <&3; touch /tmp/stop ) &
pass=0
while [ ! -e /tmp/stop ]; do
    fio --name=verify --filename=/dev/vda --direct=1 --ioengine=io_uring --iodepth=8 \
        --rw=randwrite --bsrange=4k-64k --size=24m --randseed=$pass --verify=crc32c --verify_fatal=1 \
        --output=/tmp/fio.out || { cat /tmp/fio.out; dmesg | tail -20; exit 1; }
    pass=$((pass + 1))
    echo "pass $pass done"
done
errors=$(dmesg | grep -c 'I/O error')
echo "I/O errors seen by the guest: $errors"
[ "$errors" = 0 ]
"""


def programs(*names):
    """Paths of programs of this machine, for a guest."""
    found = [shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin") for name in names]
    missing = [name for name, path in zip(names, found) if path is None]
    check(not missing, f"not installed: {', '.join(missing)}")
    return found


def _run(context, cluster, command):
    log = context.path("guest.log")
    with Guest(
        command,
        disks=[Disk(cluster.socket("data"))],
        programs=programs("mkfs.ext4", "e2fsck", "fio"),
    ) as guest:
        try:
            status, output = guest.run(GUEST_SECONDS)
        except GuestError as error:
            raise Failure(str(error)) from None
    with open(log, "w", encoding="utf-8") as file:
        file.write(output)
    check(status == 0, f"the command in the guest ended with {status}: {output[-3000:]}")
    return output


def _file_system_and_fio(context, arguments):
    cluster = Cluster(context)
    cluster.start("--vdisk", "data:192M", *arguments)
    output = _run(context, cluster, FILE_SYSTEM + FIO.format(size="48m"))
    check("err= 0" in output, "fio did not report")
    host = cluster.stats()["hosts"][0]
    check(host["guest"]["write"]["bytes"] > 150 << 20, "the writes were not seen")
    check(host["destage"]["stripes"] > 0, "nothing was destaged")
    errors = sum(kind["errors"] for kind in host["guest"].values())
    check(errors == 0, f"{errors} requests failed")
    cluster.stop()


@scenario
def a_guest_has_a_file_system(context):
    """mkfs.ext4, filled, checked; then fio with verification."""
    _file_system_and_fio(context, [])


@scenario
def a_guest_has_an_encrypted_file_system(context):
    """The same on an encrypted vdisk."""
    _file_system_and_fio(context, ["--encrypt"])


def _passes(context, cluster, between):
    with Guest(
        FIO_PASSES, disks=[Disk(cluster.socket("data"))], programs=programs("fio")
    ) as guest:
        try:
            guest.start()
            guest.until_output("pass 1 done", BOOT_SECONDS)
            between(guest)
            guest.tell("stop")
            status = guest.wait(GUEST_SECONDS)
        except GuestError as error:
            raise Failure(str(error)) from None
        finally:
            with open(context.path("guest.log"), "w", encoding="utf-8") as file:
                file.write(guest.output())
        check(status == 0, f"the command in the guest ended with {status}: {guest.output()[-3000:]}")


def _another_pass(guest):
    """Waits for a pass that began after this moment to be done."""
    done = guest.output().count("done")
    guest.until_output(f"pass {done + 2} done", 300)


@scenario
def a_guest_goes_on_without_two_drives(context):
    """Two drive files are removed under fio; nothing is damaged, and status names them."""
    cluster = Cluster(context)
    cluster.start("--vdisk", "data:192M")

    def between(guest):
        for number in (0, 9):
            os.remove(cluster.drive(number))
            _another_pass(guest)

    _passes(context, cluster, between)
    cluster.until_drives_lost(0, 9)
    cluster.stop()


@scenario
def a_guest_goes_on_when_engines_are_killed(context):
    """The host engine, then each controller, is killed and restarted; the guest sees no error."""
    cluster = Cluster(context)
    cluster.start("--vdisk", "data:192M")

    def between(guest):
        for name in [HOST] + CONTROLLERS:
            cluster.kill(name)
            time.sleep(2)
            cluster.restart(name)
            _another_pass(guest)

    _passes(context, cluster, between)
    cluster.stop()


# A file of a journalled file system, written and checked until the test says stop; the longest wait is printed.
FILE_PASSES = """
exec 3<&0
( read -r line <&3; touch /tmp/stop ) &
mkfs.ext4 -q -F /dev/vda
mount -o data=journal /dev/vda /mnt
pass=0
while [ ! -e /tmp/stop ]; do
    fio --name=verify --filename=/mnt/file --ioengine=io_uring --iodepth=8 --fsync=32 --direct=1 \
        --rw=randwrite --bsrange=4k-64k --size=24m --randseed=$pass --verify=crc32c --verify_fatal=1 \
        --output-format=json --output=/tmp/fio.out || { cat /tmp/fio.out; dmesg | tail -20; exit 1; }
    grep -A4 '"lat_ns"' /tmp/fio.out | sed -n 's/.*"max" : \\([0-9]*\\).*/longest wait \\1 ns/p'
    pass=$((pass + 1))
    echo "pass $pass done"
done
umount /mnt
e2fsck -fn /dev/vda || exit 1
errors=$(dmesg | grep -c 'I/O error')
echo "I/O errors seen by the guest: $errors"
[ "$errors" = 0 ]
"""

KILLS = 10


@scenario
def a_guest_outlives_ten_host_engines(context):
    """A journalled file system under fio verify; SIGKILL of the host engine ten times, and an upgrade."""
    cluster = Cluster(context)
    cluster.start("--vdisk", "data:192M", "--restart")
    with Guest(
        FILE_PASSES, disks=[Disk(cluster.socket("data"))], programs=programs("mkfs.ext4", "e2fsck", "fio")
    ) as guest:
        try:
            guest.start()
            guest.until_output("pass 1 done", BOOT_SECONDS)
            for number in range(KILLS):
                cluster.kill(HOST)
                cluster.until_status_ready()
                if number % 3 == 2:
                    _another_pass(guest)
                else:
                    time.sleep(1)
            cluster.cleave("host", "upgrade")
            _another_pass(guest)
            guest.tell("stop")
            status = guest.wait(GUEST_SECONDS)
        except GuestError as error:
            raise Failure(str(error)) from None
        finally:
            with open(context.path("guest.log"), "w", encoding="utf-8") as file:
                file.write(guest.output())
        check(status == 0, f"the command in the guest ended with {status}: {guest.output()[-3000:]}")
        waits = [int(found) for found in re.findall(r"longest wait (\d+) ns", guest.output())]
        check(waits, "fio did not say how long requests took")
        print(f"  the guest waited at most {max(waits) // 1_000_000} ms for a request")
    cluster.stop()

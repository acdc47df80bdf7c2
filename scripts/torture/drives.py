"""Drives that fail. Redundancy covers two drives of a stripe, so two drives of a cluster are sick: whatever happens
to drives happens to these.

A sick drive has a file system of its own, in a file behind a loop device, so that it can be full, or read-only, as a file
system is that found itself damaged, or dead: every request to a dead one is answered with EIO, as by a disk that is gone. The engines' configuration names the
file there; the file among the cluster's drives is a link to it.
"""

import fcntl
import os
import shutil
import struct
import subprocess

from framework import Failure, check

# EXT4_IOC_SHUTDOWN (fs/ext4/ext4.h): _IOR('X', 125, __u32); 2: without flushing anything.
EXT4_IOC_SHUTDOWN = 0x8004587D
SHUTDOWN_NOLOGFLUSH = 2
PAGE = 4096
# Both copies of the superblock: without them a drive is nobody's, and an operator has to look.
SUPERBLOCKS = 2 * PAGE
BITS_MAX = 64


class SickDrive:
    """A drive with a file system of its own. `parts` does not run yet."""

    def __init__(self, context, parts, number):
        self.number = number
        self.lost = False
        self._parts = parts
        self._image = context.path(f"sick-{number}.ext4")
        self._folder = context.path(f"sick-{number}")
        self._filler = os.path.join(self._folder, "filler")
        own = parts.drive(number)
        size = os.path.getsize(own)
        os.mkdir(self._folder)
        with open(self._image, "wb") as image:
            image.truncate(size + size // 8 + (64 << 20))
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", self._image)
        _run("mount", "-o", "loop,errors=remount-ro", self._image, self._folder)
        context.at_end(self._unmount)
        self.path = os.path.join(self._folder, "drive.img")
        _run("cp", "--sparse=always", own, self.path)
        os.remove(own)
        os.symlink(self.path, own)
        for name in ("datanode-1-a", "datanode-1-b"):
            parts.change_config(name, lambda text: text.replace(f'"{own}"', f'"{self.path}"'))

    def _unmount(self):
        # Engines may still have files open there.
        subprocess.run(["umount", "-l", self._folder], capture_output=True, check=False)

    def fill(self):
        """Leaves no space behind the drive's holes."""
        with open(self._filler, "wb") as filler:
            length = 64 << 20
            offset = 0
            while length >= PAGE:
                try:
                    os.posix_fallocate(filler.fileno(), offset, length)
                    offset += length
                except OSError:
                    length //= 2

    def empty(self):
        """Undoes `fill`."""
        if os.path.exists(self._filler):
            os.remove(self._filler)

    def unlink(self):
        """The drive's file is removed."""
        self.lost = True
        os.remove(self.path)

    def truncate(self):
        """The drive shrinks to half."""
        self.lost = True
        os.truncate(self.path, os.path.getsize(self.path) // 2)

    def die(self):
        """From now on every request fails."""
        self.lost = True
        _shut_down(self._folder)

    def turn_read_only(self):
        """From now on every write fails with EROFS, and reads go on."""
        self.lost = True
        device = os.stat(self._folder).st_dev
        device = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
        # What ext4 does when it finds itself damaged, by `errors=remount-ro`.
        with open(f"/sys/fs/ext4/{os.path.basename(device)}/trigger_fs_error", "w", encoding="ascii") as trigger:
            trigger.write("torture")

    def take_out(self):
        """What an operator does with a drive that is lost: the supervisor would not start with it."""
        link = self._parts.drive(self.number)
        if os.path.lexists(link):
            os.remove(link)


class SickFlash:
    """A device of flash on a file system of its own, added to the host that runs."""

    _made = 0

    def __init__(self, parts):
        SickFlash._made += 1
        self._parts = parts
        self._image = parts.context.path(f"flash-{SickFlash._made}.ext4")
        self._folder = parts.context.path(f"flash-{SickFlash._made}")
        self._path = os.path.join(self._folder, "flash.img")
        os.mkdir(self._folder)
        with open(self._image, "wb") as image:
            image.truncate(160 << 20)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", self._image)
        _run("mount", "-o", "loop", self._image, self._folder)
        parts.context.at_end(self._unmount)
        parts.cleave("flash", "add", self._path, "--size", "96M")

    def _unmount(self):
        subprocess.run(["umount", "-l", self._folder], capture_output=True, check=False)

    def die(self):
        """From now on every request fails."""
        _shut_down(self._folder)

    def take_out(self):
        """What an operator does with it."""
        self._parts.cleave("flash", "retire", self._path)
        self._unmount()
        os.remove(self._image)


def _shut_down(folder):
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(opened, EXT4_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_NOLOGFLUSH))
    finally:
        os.close(opened)


def flip_bits(path, random, after):
    """Flips bits of one page of a file, beyond `after`, that holds something; the number of flipped bits."""
    with open(path, "r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for begin in (random.randrange(after, size), after):
            try:
                page = os.lseek(file.fileno(), begin, os.SEEK_DATA) // PAGE * PAGE
                break
            except OSError:
                # Nothing is beyond: then what is first.
                page = None
        if page is None:
            return 0
        content = bytearray(os.pread(file.fileno(), PAGE, page))
        count = random.randint(1, BITS_MAX)
        for _ in range(count):
            bit = random.randrange(8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
        os.pwrite(file.fileno(), content, page)
        # What is read next is read from the medium.
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return count


def _run(*line):
    environment = dict(os.environ, PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    check(shutil.which(line[0], path=environment["PATH"]), f"{line[0]} is not installed")
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise Failure(f"{' '.join(line)}: {done.stderr.strip()}")

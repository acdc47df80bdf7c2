"""Throw-away QEMU guests for tests: Debian's cloud kernel, a busybox initramfs, one command.

The kernel package is fetched with apt and unpacked, never installed; what is fetched stays in
`target/guest`, and everything of one guest lies in a directory that goes away with it. A guest's
memory is a shared memfd, so that vhost-user devices can be attached.

    archive.py   the initramfs, as a cpio archive
    kernel.py    the kernel package, and its modules in the order in which they load
    machine.py   one guest: how it is built, started, watched and stopped

`python3 scripts/guest --help` runs one command in one guest.
"""

from .machine import Disk, Guest, GuestError

__all__ = ["Disk", "Guest", "GuestError"]

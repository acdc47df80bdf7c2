"""An initramfs: a cpio archive in the "newc" format, built in memory.

Directories are added before what lies in them, and nothing is added twice: the first wins.
"""

import os
import re
import stat
import subprocess

DIRECTORY = stat.S_IFDIR | 0o755
EXECUTABLE = stat.S_IFREG | 0o755
REGULAR = stat.S_IFREG | 0o644
LINK = stat.S_IFLNK | 0o777
CONSOLE = stat.S_IFCHR | 0o600


class Archive:
    """Files of a guest. Paths are relative to its root."""

    def __init__(self):
        self._parts = []
        self._names = set()

    def directory(self, name):
        """Adds a directory, with those above it."""
        self._entry(name, DIRECTORY)

    def data(self, name, content, mode=REGULAR):
        """Adds a file with this content."""
        self._entry(name, mode, content)

    def link(self, name, target):
        """Adds a symbolic link."""
        self._entry(name, LINK, target.encode())

    def console(self, name):
        """Adds the console's device node, which the kernel opens before anything is mounted."""
        self._entry(name, CONSOLE, b"", (5, 1))

    def file(self, source, name):
        """Adds a copy of a file of this machine."""
        mode = EXECUTABLE if os.access(source, os.X_OK) else REGULAR
        with open(source, "rb") as file:
            self._entry(name, mode, file.read())

    def program(self, source, name):
        """Adds an executable with the shared libraries that it needs."""
        self.file(source, name)
        listed = subprocess.run(["ldd", source], capture_output=True, text=True, check=False)
        if listed.returncode == 0:
            for library in re.findall(r"(/\S+) \(0x", listed.stdout):
                self.file(library, library)

    def finished(self):
        """The archive's bytes."""
        return b"".join(self._parts) + _record(0, "TRAILER!!!", 0, b"", (0, 0))

    def _entry(self, name, mode, content=b"", device=(0, 0)):
        name = name.strip("/")
        if name in self._names:
            return
        parent = os.path.dirname(name)
        if parent:
            self._entry(parent, DIRECTORY)
        self._names.add(name)
        self._parts.append(_record(len(self._parts) + 1, name, mode, content, device))


def _record(inode, name, mode, content, device):
    encoded = name.encode() + b"\0"
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
    # namesize, check
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return _aligned(head) + _aligned(content)


def _aligned(content):
    return content + b"\0" * (-len(content) % 4)

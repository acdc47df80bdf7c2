"""Debian's cloud kernel: fetched with apt, unpacked into the cache, modules read from there.

The cache directory is complete or absent: a package is unpacked beside it and then renamed.
"""

import gzip
import lzma
import os
import re
import shutil
import subprocess
import tempfile

PACKAGE = "linux-image-cloud-amd64"


class KernelError(Exception):
    """The kernel could not be fetched, or lacks something."""


class Kernel:
    """An unpacked kernel package."""

    def __init__(self, root):
        images = sorted(name for name in os.listdir(root + "/boot") if name.startswith("vmlinuz-"))
        if not images:
            raise KernelError(f"there is no kernel in {root}/boot; remove {root} and try again")
        self.image = f"{root}/boot/{images[-1]}"
        self.version = images[-1].removeprefix("vmlinuz-")
        modules = f"{root}/lib/modules/{self.version}"
        if not os.path.isdir(modules):
            modules = f"{root}/usr/lib/modules/{self.version}"
        self._paths = {}
        for folder, _, files in os.walk(modules):
            for file in files:
                if re.search(r"\.ko(\.xz|\.gz)?$", file):
                    self._paths[_module_name(file)] = os.path.join(folder, file)
        with open(modules + "/modules.builtin", encoding="utf-8") as listed:
            self._builtin = {_module_name(os.path.basename(line.strip())) for line in listed}
        self._contents = {}

    def modules(self, names):
        """`(name, content)` of these modules and of those that they need, in loading order."""
        order = []
        for name in names:
            self._add(name.replace("-", "_"), order, required=True)
        return [(name, self._content(name)) for name in order]

    def _add(self, name, order, required):
        if name in order or name in self._builtin:
            return
        if name not in self._paths:
            if required:
                raise KernelError(f"the kernel {self.version} has no module {name}")
            return
        content = self._content(name)
        # Soft dependencies only help where they are present.
        for soft in re.findall(rb"\0softdep=([^\0]*)", content):
            before = re.search(r"pre: *([^:]*?)( post:|$)", soft.decode())
            for other in before[1].split() if before else []:
                self._add(other.replace("-", "_"), order, required=False)
        needed = re.search(rb"\0depends=([^\0]*)", content)
        for other in needed[1].decode().split(",") if needed and needed[1] else []:
            self._add(other.replace("-", "_"), order, required=True)
        order.append(name)

    def _content(self, name):
        if name not in self._contents:
            path = self._paths[name]
            with open(path, "rb") as file:
                content = file.read()
            if path.endswith(".xz"):
                content = lzma.decompress(content)
            elif path.endswith(".gz"):
                content = gzip.decompress(content)
            self._contents[name] = content
        return self._contents[name]


def fetch(cache):
    """The kernel in `cache`; the newest that apt offers when there is none."""
    os.makedirs(cache, exist_ok=True)
    present = sorted(name for name in os.listdir(cache) if name.startswith("linux-image-"))
    if present:
        return Kernel(f"{cache}/{present[-1]}")
    package = _newest()
    if package is None:
        _update()
        package = _newest()
    if package is None:
        raise KernelError(f"apt does not know {PACKAGE}; are Debian's package sources configured?")
    target = f"{cache}/{package}"
    try:
        _unpack(package, cache, target)
    except KernelError:
        # A list that is older than the archive names a package that is gone.
        _update()
        package = _newest() or package
        target = f"{cache}/{package}"
        _unpack(package, cache, target)
    return Kernel(target)


def _update():
    if os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-q"], capture_output=True, check=False)


def _newest():
    asked = ["apt-cache", "depends", "--no-recommends", "--no-suggests", PACKAGE]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        raise KernelError("there is no apt here; guests need a kernel package of Debian") from None
    found = re.search(r"Depends: (linux-image-\d\S+)", answer)
    return found[1] if found else None


def _unpack(package, cache, target):
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as folder:
        # apt drops its privileges when it can write to the folder.
        os.chmod(folder, 0o777)
        fetched = subprocess.run(
            ["apt-get", "download", "-q", package], cwd=folder, capture_output=True, text=True, check=False
        )
        debs = [name for name in os.listdir(folder) if name.endswith(".deb")]
        if fetched.returncode != 0 or not debs:
            reason = (fetched.stderr.strip() or "no reason given").splitlines()[-1]
            raise KernelError(f"apt could not fetch {package}: {reason}; run apt-get update")
        unpacked = folder + "/unpacked"
        subprocess.run(["dpkg", "-x", f"{folder}/{debs[0]}", unpacked], check=True)
        try:
            os.rename(unpacked, target)
        except OSError:
            # Another run was faster.
            shutil.rmtree(unpacked)


def _module_name(file):
    return file.split(".ko")[0].replace("-", "_")

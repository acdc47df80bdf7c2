"""Images go into vdisks and come out of them."""

import os
import random
import subprocess

from cluster import HOST, Cluster
from errors import SMALL
from framework import check, scenario, until

MIB = 1 << 20


def _sparse(path, size, parts):
    """An image of holes, with random content at some places; returns its content."""
    generator = random.Random(7)
    content = bytearray(size)
    for offset, length in parts:
        content[offset : offset + length] = generator.randbytes(length)
    with open(path, "wb") as image:
        image.truncate(size)
        for offset, length in parts:
            image.seek(offset)
            image.write(content[offset : offset + length])
    return bytes(content)


def _holds(path, content):
    """The file has this content, and zeros behind it."""
    with open(path, "rb") as image:
        found = image.read()
    check(found[: len(content)] == content, f"{path} has other content")
    check(found[len(content) :].strip(b"\0") == b"", f"{path} has content behind the image")


@scenario
def images_come_out_as_they_went_in(context):
    """Raw and qcow2, sparse, into new and used vdisks; what must not be done is refused."""
    cluster = Cluster(context, arguments=SMALL)
    cluster.start()
    image, back = context.path("image.raw"), context.path("back.raw")
    # A size that is no multiple of a block, content at both ends and in between.
    size = 96 * MIB + 1000
    parts = [(0, 4096), (5 * MIB + 17, 9 * MIB), (60 * MIB, 130_000), (size - 3, 3)]
    content = _sparse(image, size, parts)
    cluster.cleave("import", image, "one", "--quiet")
    cluster.cleave("export", "one", back, "--quiet")
    _holds(back, content)
    used = os.stat(back).st_blocks * 512
    check(used < 12 * MIB, f"the exported image takes {used} bytes")

    line = cluster.cleave_fails("import", image, "one", "--quiet")
    check("--accept-data-loss" in line, line)
    line = cluster.cleave_fails("export", "one", back, "--quiet")
    check("--overwrite" in line, line)
    check("none of that name" in cluster.cleave_fails("export", "two", back), "export of nothing")
    check("cannot open" in cluster.cleave_fails("import", context.path("none"), "two"), "no image")

    # Nothing of what was there shows through a smaller image.
    other = context.path("other.raw")
    less = _sparse(other, 20 * MIB, [(MIB, MIB)])
    cluster.cleave("import", other, "one", "--quiet", "--accept-data-loss")
    cluster.cleave("export", "one", back, "--quiet", "--overwrite")
    _holds(back, less)
    cluster.cleave("vdisk", "create", "small", "8M")
    line = cluster.cleave_fails("import", other, "small", "--quiet", "--accept-data-loss")
    check("resize" in line, line)

    qcow2, chained = context.path("image.qcow2"), context.path("chained.qcow2")
    subprocess.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", image, qcow2], check=True)
    cluster.cleave("import", qcow2, "two", "--quiet", "--shares", "2")
    vdisks = {vdisk["name"]: len(vdisk["shares"]) for vdisk in cluster.status()["hosts"][0]["vdisks"]}
    check((vdisks["one"], vdisks["two"]) == (1, 2), f"shares: {vdisks}")
    refused = cluster.cleave_fails("import", qcow2, "two", "--quiet", "--accept-data-loss", "--shares", "4")
    check("leave --shares out" in refused, refused)
    again = context.path("again.qcow2")
    cluster.cleave("export", "two", again, "--quiet")
    subprocess.run(["qemu-img", "check", "-q", again], check=True)
    compared = subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", image, again])
    check(compared.returncode == 0, "the qcow2 image that came out differs")
    # An image that names another file could bring any file of this machine into a guest.
    make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image, chained]
    subprocess.run(make, check=True)
    check("another file" in cluster.cleave_fails("import", chained, "three"), "a backing file")
    left = [name for name in os.listdir(os.path.dirname(image)) if "partial" in name or "copy" in name]
    check(left == [], f"{left} were left behind")
    cluster.stop()


@scenario
def an_import_outlives_the_host_engine(context):
    """SIGKILL of the engine in the middle: the import goes on, and every byte is there."""
    cluster = Cluster(context, arguments=[*SMALL, "--restart"])
    cluster.start()
    image, back = context.path("image.raw"), context.path("back.raw")
    content = _sparse(image, 192 * MIB, [(0, 192 * MIB)])
    cluster.cleave("vdisk", "create", "one", "256M")
    cluster.until_status_ready()
    command = cluster.command("import", image, "one", "--quiet", "--accept-data-loss")
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    context.at_end(running.kill)

    def begun():
        check(running.poll() is None, f"it ended too early: {running.poll()}")
        return cluster.stats()["hosts"][0]["codec"]["bytes_in"] > 16 * MIB

    until(begun, 60, "the import does not begin")
    cluster.kill(HOST)
    _, errors = running.communicate(timeout=300)
    check(running.returncode == 0, f"the import failed: {errors}")
    cluster.cleave("export", "one", back, "--quiet")
    _holds(back, content)
    cluster.stop()

"""The host's flash: what is read comes from it, and whatever happens to it shows in nothing that is read."""

import os
import random
import time

from cluster import HOST, Cluster
from errors import SMALL
from framework import check, scenario, until
from verifier import Verifier

MIB = 1 << 20


def _flash(cluster):
    """The host's flash in status."""
    return cluster.status()["hosts"][0]["flash"]


def _figures(cluster):
    """Blocks served by flash and by the pool, and what flash says of itself."""
    stats = cluster.stats()["hosts"][0]
    return stats["reads"]["flash"], stats["reads"]["pool"], stats["flash"]


def _states(cluster):
    return {device["device"]: device["state"] for device in _flash(cluster)["devices"]}


def _until_in_use(cluster, device, seconds=30):
    until(lambda: _states(cluster).get(device) == "in_use", seconds, lambda: f"{_states(cluster)}")


def _until_retired(cluster, device, seconds=60):
    until(lambda: _states(cluster).get(device) == "retired", seconds, lambda: f"{_states(cluster)}")


def _read_all(context, cluster, vdisk, saved):
    """Reads everything that an earlier run left; blocks that came from flash and from the pool."""
    before = _figures(cluster)
    Verifier(context, cluster, vdisk, 0, ["--load", saved]).finish(300)
    after = _figures(cluster)
    return after[0] - before[0], after[1] - before[1]


def _check_hits(flash, pool, percent, when):
    check(flash > 1000, f"{when}: only {flash} blocks came from flash, {pool} from the pool")
    hit = flash * 100 / (flash + pool)
    print(f"  {when}: {hit:.1f} % of {flash + pool} blocks came from flash")
    check(hit >= percent, f"{when}: {flash} blocks came from flash, {pool} from the pool")


@scenario
def flash_serves_reads_also_after_kills_and_restarts(context):
    """99 % of what is read comes from flash: at once, after a SIGKILL, after a clean stop."""
    cluster = Cluster(context, arguments=SMALL)
    cluster.start("--vdisk", "data:512M")
    path = _flash(cluster)["devices"][0]["device"]
    saved = context.path("saved")
    Verifier(context, cluster, "data", 256 * MIB, ["--save", saved]).finish(300)
    _check_hits(*_read_all(context, cluster, "data", saved), 99, "warm")
    for _ in range(2):
        # What the last second brought may not be described yet.
        time.sleep(1)
        cluster.kill(HOST)
        cluster.restart(HOST)
        _until_in_use(cluster, path)
        _check_hits(*_read_all(context, cluster, "data", saved), 99, "after a SIGKILL")
    # Stripes are on their way when the stop comes: flash gets them too.
    Verifier(context, cluster, "data", 64 * MIB, ["--load", saved, "--save", saved]).finish(300)
    cluster.stop()
    cluster.start()
    _until_in_use(cluster, path)
    _check_hits(*_read_all(context, cluster, "data", saved), 99, "after a clean stop")
    cluster.stop()


def _flip(path, source, count):
    """Flips bits where the file holds anything."""
    with open(path, "r+b", buffering=0) as file:
        for _ in range(count):
            size = os.fstat(file.fileno()).st_size
            try:
                start = os.lseek(file.fileno(), source.randrange(size), os.SEEK_DATA)
            except OSError:
                start = source.randrange(8192)
            at = min(size - 1, start + source.randrange(4096))
            byte = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([byte[0] ^ (1 << source.randrange(8))]), at)


@scenario
def nothing_that_happens_to_flash_shows_in_what_is_read(context):
    """Bits flip, the file is truncated, unlinked, replaced, all under verified load."""
    source = random.Random(context.options.seed)
    cluster = Cluster(context, arguments=SMALL)
    path = context.path("flash")
    cluster.start("--vdisk", "data:512M", "--flash", path, "--flash-size", "256M")
    verifier = Verifier(context, cluster, "data", 8 << 30, until_told=True)
    verifier.until_written(64 * MIB, 300)
    for _ in range(20):
        _flip(path, source, 200)
        verifier.until_written(verifier.written() + 4 * MIB, 300)
    _, _, flash = _figures(cluster)
    device = _flash(cluster)["devices"][0]
    found = flash["check_failures"]
    print(f"  4000 bits flipped: {found} blocks failed their check, {device['errors']} places lost content")
    check(found > 0 or device["errors"] > 0, "no flipped bit was found")

    def again(happen):
        """Something happens to the device: it is retired, and used again when it is added."""
        happen()
        _until_retired(cluster, path)
        check(path in "\n".join(cluster.status()["warnings"]), f"{cluster.status()['warnings']}")
        shown = cluster.cleave("flash", "status").splitlines()
        check(any(path in line and " UTC " in line and "it is retired" in line for line in shown), f"{shown}")
        verifier.until_written(verifier.written() + 16 * MIB, 300)
        if os.path.exists(path):
            os.unlink(path)
        cluster.cleave("flash", "add", path, "--size", "256M")
        _until_in_use(cluster, path)
        verifier.until_written(verifier.written() + 16 * MIB, 300)
        check(_flash(cluster)["space"]["used"] > 0, "nothing comes to the new device")

    if device["state"] == "retired":
        again(lambda: None)
    again(lambda: os.truncate(path, 40 * MIB))
    again(lambda: os.unlink(path))

    def replace():
        os.rename(path, path + ".old")
        with open(path, "wb") as file:
            file.truncate(256 * MIB)

    again(replace)
    # A device that was cut off while nobody used it begins anew.
    cluster.kill(HOST)
    os.truncate(path, 128 * MIB)
    cluster.restart(HOST)
    _until_in_use(cluster, path)
    verifier.until_written(verifier.written() + 16 * MIB, 300)
    # One that is destroyed is not used, and not overwritten.
    cluster.kill(HOST)
    with open(path, "r+b") as file:
        file.write(b"\0" * 1024 + b"something else".ljust(7168, b"!"))
    cluster.restart(HOST)
    _until_retired(cluster, path)
    with open(path, "rb") as file:
        check(b"something else" in file.read(8192), "it was overwritten")
    verifier.end_writing()
    figures = verifier.finish(900)
    check(figures["reconnects"] >= 2, f"{figures}")
    cluster.stop()


@scenario
def empty_flash_warms_up(context):
    """A host without flash gets some: what is read comes there, with its neighbourhood."""
    cluster = Cluster(context, arguments=SMALL)
    cluster.start("--vdisk", "data:512M", "--flash", "none")
    saved = context.path("saved")
    Verifier(context, cluster, "data", 192 * MIB, ["--save", saved]).finish(300)
    flash, pool = _read_all(context, cluster, "data", saved)
    check(flash == 0 and pool > 1000, f"without flash: {flash} and {pool}")
    cluster.cleave("flash", "add", context.path("flash"), "--size", "512M")
    _read_all(context, cluster, "data", saved)
    # What was read ahead is bounded: the rest comes with the next round.
    time.sleep(2)
    _read_all(context, cluster, "data", saved)
    time.sleep(2)
    _check_hits(*_read_all(context, cluster, "data", saved), 90, "the third time")
    check(_figures(cluster)[2]["parts_fetched"] > 0, "nothing was fetched")
    cluster.stop()


@scenario
def flash_comes_and_goes_under_load(context):
    """Devices are added and retired, kept over restarts, refused when they hold something else."""
    cluster = Cluster(context, arguments=SMALL)
    cluster.start("--vdisk", "data:512M", "--flash", "memory:64M")
    verifier = Verifier(context, cluster, "data", 8 << 30, until_told=True)
    verifier.until_written(32 * MIB, 300)
    one, two = context.path("one"), context.path("two")
    for _ in range(3):
        cluster.cleave("flash", "add", one, "--size", "128M")
        cluster.cleave("flash", "add", two, "--size", "128M")
        verifier.until_written(verifier.written() + 24 * MIB, 300)
        used = {d["device"]: d["space"]["used"] for d in _flash(cluster)["devices"]}
        check(used[one] > 0 and used[two] > 0, f"{used}")
        cluster.cleave("flash", "retire", one)
        cluster.cleave("flash", "retire", two)
        check(list(_states(cluster)) == ["memory:64M"], f"{_states(cluster)}")
        os.unlink(one)
        os.unlink(two)
    cluster.cleave("flash", "retire", "memory:64M")
    check("no flash" in cluster.cleave("flash", "status"), cluster.cleave("flash", "status"))
    cluster.cleave("flash", "add", one, "--size", "128M")
    line = cluster.cleave_fails("flash", "add", one)
    check("in use already" in line, line)
    line = cluster.cleave_fails("flash", "add", "/etc/os-release")
    check("/etc/os-release" in line, line)
    with open(two, "wb") as file:
        file.truncate(64 * MIB)
        file.seek(MIB // 2)
        file.write(b"a file system")
    line = cluster.cleave_fails("flash", "add", two)
    check("not empty" in line, line)
    line = cluster.cleave_fails("flash", "retire", two)
    check("not flash of this host" in line, line)
    cluster.kill(HOST)
    cluster.restart(HOST)
    _until_in_use(cluster, one)
    check(list(_states(cluster)) == [one], f"{_states(cluster)}")
    verifier.end_writing()
    verifier.finish(900)
    cluster.stop()
    cluster.start()
    _until_in_use(cluster, one)
    cluster.stop()


@scenario
def small_flash_is_a_cache(context):
    """Flash that is smaller than what vdisks hold evicts, serves what it can, and status says so."""
    cluster = Cluster(context, arguments=SMALL)
    cluster.start("--vdisk", "data:512M", "--flash", context.path("flash"), "--flash-size", "32M")
    Verifier(context, cluster, "data", 256 * MIB).finish(600)
    flash, pool, figures = _figures(cluster)
    print(f"  {figures['hit_percent']:.0f} % of reads hit flash of 32 MiB")
    check(figures["parts_evicted"] > 0 and flash > 0, f"{flash}, {pool}, {figures}")
    status = _flash(cluster)
    if status["headroom"] < 0:
        check("add flash" in "\n".join(cluster.status()["warnings"]), "no warning")
    cluster.stop()

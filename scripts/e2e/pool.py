"""What the pool holds: what is overwritten is freed, and what is damaged is mended."""

import json
import os

from cluster import Cluster
from framework import check, scenario, until
from verifier import Verifier

MIB = 1 << 20


class Pool:
    """Figures of a cluster's pool."""

    def __init__(self, cluster):
        self._cluster = cluster

    def _active(self):
        return next(one for one in self._cluster.status()["controllers"] if one["role"] == "active")

    def status(self):
        """`cleave pool status --json`."""
        return json.loads(self._cluster.cleave("pool", "status", "--json"))

    def used(self):
        """Bytes of slots in use, parity included."""
        return sum(drive["space"]["used"] for drive in self._active()["drives"])

    def capacity(self):
        """Bytes of all slots."""
        return sum(drive["space"]["capacity"] for drive in self._active()["drives"])

    def figures(self):
        """Counts of blocks and bytes so far."""
        host = self._cluster.stats()["hosts"][0]
        return {
            "written": host["codec"]["blocks"],
            "zeros": host["codec"]["zero_blocks"],
            "recognised": host["destage"]["deduplicated"],
            "frames": host["destage"]["frames"],
            "left": host["destage"]["stripes_left"],
            "bytes_in": host["codec"]["bytes_in"],
            "bytes_out": host["codec"]["bytes_out"],
        }


@scenario
def overwriting_keeps_the_pool_bounded(context):
    """A vdisk is overwritten until many times the pool's size was written: stripes are freed, it is never full."""
    arguments = ["--drives", "4", "--drive-size", "512M", "--log-size", "32M", "--host-memory", "128M"]
    cluster = Cluster(context, arguments=arguments)
    cluster.start("--vdisk", "data:96M")
    pool = Pool(cluster)
    capacity = pool.capacity()
    verifier = Verifier(context, cluster, "data", 2 * capacity, ["--depth", "64"], until_told=True)
    most = 0
    while verifier.is_running() and verifier.written() < capacity * 3 // 2:
        verifier.until_written(verifier.written() + 24 * MIB, 300)
        most = max(most, pool.used())
        warnings = cluster.status()["warnings"]
        check(not any("full" in line or "space" in line for line in warnings), f"{warnings}")
    verifier.end_writing()
    figures = verifier.finish(600)
    left = pool.figures()["left"]
    shown = cluster.cleave("pool", "status")
    check("stripes: " in shown and "drive 3 (" in shown and "destage waits" not in shown, shown)
    print(
        f"  {figures['written'] >> 20} MiB written to a vdisk of 96 MiB; of {capacity >> 20} MiB of slots at most "
        f"{most >> 20} MiB were in use; {left} stripes were freed"
    )
    check(left > 0, "nothing was freed")
    check(most * 10 < capacity * 9, f"{most} bytes of {capacity} were in use")
    cluster.stop()


def _damage(path, skip=1 << 20):
    """Flips a bit in each MiB of a drive's file that holds something; how many."""
    count = 0
    with open(path, "r+b", buffering=0) as file:
        end, at = os.fstat(file.fileno()).st_size, skip
        while at < end:
            try:
                at = max(at, os.lseek(file.fileno(), at, os.SEEK_DATA))
            except OSError:
                break
            byte = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 0x10]), at)
            count, at = count + 1, at + MIB
        # What is read next is read from the medium.
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return count


@scenario
def damage_is_found_and_mended(context):
    """Bits of two drives flip while nobody reads; a scrub writes anew what they struck, so that two others may be lost."""
    arguments = ["--drive-size", "1G", "--log-size", "32M", "--host-memory", "128M", "--flash", "none"]
    cluster = Cluster(context, arguments=arguments)
    cluster.start("--vdisk", "data:256M")
    saved = context.path("saved")
    Verifier(context, cluster, "data", 256 * MIB, ["--save", saved]).finish(600)
    pool = Pool(cluster)
    flipped = _damage(cluster.drive(3)) + _damage(cluster.drive(8))
    said = cluster.cleave("pool", "scrub", "--now", "--wait")
    print(f"  {flipped} bits flipped; scrub: {said.strip()}")
    figures = pool.status()["stripes"]["scrub"]["before"]
    check(figures["damaged"] > 0 and figures["repaired"] == figures["damaged"], f"{figures}")
    struck = {drive["drive"] for drive in pool.status()["drives"] if drive["damaged"]}
    check(struck <= {3, 8} and struck, f"drives {struck} had damage, not 3 and 8")
    events = cluster.cleave("events")
    check("had a damaged shard, which was written anew" in events and "has looked at all stripes" in events, events)
    said = cluster.cleave("pool", "scrub", "--now", "--wait")
    check("no damage" in said, f"a second scrub found what the first one did not mend: {said}")
    check("last scrub: " in cluster.cleave("pool", "status"), "the pool's status does not tell of the scrub")
    # All redundancy is there again.
    for number in (1, 6):
        os.remove(cluster.drive(number))
    cluster.until_drives_lost(1, 6)
    Verifier(context, cluster, "data", 0, ["--load", saved]).finish(600)
    _beyond_parity(cluster, pool)
    cluster.stop()


def _beyond_parity(cluster, pool):
    """More damage than parity can solve is said, and whose it is; nothing is made up."""

    def rebuilt():
        cluster.cleave("pool", "rebuild")
        stripes = pool.status()["stripes"]
        return stripes["degraded"] == 0 and not stripes["rebuild"]["running"]

    until(rebuilt, 120, lambda: f"what the lost drives had is not written anew: {pool.status()['stripes']}")
    for number in (3, 4, 5, 8):
        _damage(cluster.drive(number))
    said = cluster.cleave_fails("pool", "scrub", "--now", "--wait")
    check("damaged and cannot be mended" in said, said)
    events = cluster.cleave("events")
    check("found damage that cannot be mended" in events and "of vdisks " in events, events)

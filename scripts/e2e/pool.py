"""What the pool holds: what is overwritten is freed."""

import json

from cluster import Cluster
from framework import check, scenario
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

"""Several hosts on one machine: vdisks that move, and hosts that are lost, stopped, and come to (C8, C9)."""

import os
import signal
import time

from cluster import Cluster
from framework import check, scenario, until
from verifier import Probe, Verifier


class MovingSocket:
    """A path that leads to the host which serves the vdisk: a front end finds the next one there."""

    def __init__(self, context, cluster, vdisk):
        self.vdisk = vdisk
        self._cluster = cluster
        self._path = context.path(f"{vdisk}.sock")
        self.lead(1)

    def lead(self, host):
        """To this host from now on."""
        next_path = self._path + "-next"
        os.symlink(self._cluster.socket(self.vdisk, host), next_path)
        os.replace(next_path, self._path)

    def socket(self, _vdisk):
        """As a cluster says where a vdisk is served."""
        return self._path


def _serves(cluster, host, vdisk):
    for one in cluster.status()["hosts"]:
        if one["host"] == host:
            return [found["state"] for found in one["vdisks"] if found["name"] == vdisk]
    return []


@scenario
def a_vdisk_moves_between_hosts(context):
    """A vdisk that no guest uses moves to the other host at once, and back; with a guest it does not."""
    cluster = Cluster(context, arguments=["--hosts", "2", "--drives", "3", "--drive-size", "2G"])
    cluster.start()
    cluster.cleave("vdisk", "create", "data", "256M", "--shares", "2")
    saved = context.path("saved")
    Verifier(context, cluster, "data", 32 << 20, ["--save", saved]).finish(600)
    begin = time.monotonic()
    told = cluster.cleave("vdisk", "attach", "data", "--host", "2")
    took = time.monotonic() - begin
    check(cluster.socket("data", 2) in told, f"it says {told!r}")
    print(f"  moved in {took:.1f} s")
    moved = MovingSocket(context, cluster, "data")
    moved.lead(2)
    check(_serves(cluster, 1, "data") == [], "the first host serves it still")
    verifier = Verifier(context, moved, "data", 1 << 40, ["--load", saved], until_told=True)
    verifier.until_written(1 << 20, 600)
    line = cluster.cleave_fails("vdisk", "attach", "data", "--host", "1")
    check("a guest uses it on host-2" in line, line)
    check("there is no such host" in cluster.cleave_fails("vdisk", "attach", "data", "--host", "3"), line)
    verifier.end_writing()
    verifier.finish(600)
    cluster.cleave("vdisk", "attach", "data", "--host", "1")
    cluster.stop()


@scenario
def a_lost_host_is_replaced(context):
    """A host is killed under load, and its flash is gone; the other one serves its vdisk, with all that was acknowledged."""
    cluster = Cluster(context, arguments=["--hosts", "2"])
    cluster.start()
    cluster.cleave("vdisk", "create", "data", "512M", "--shares", "4")
    moving = MovingSocket(context, cluster, "data")
    verifier = Verifier(context, moving, "data", 1 << 40, until_told=True)
    verifier.until_written(64 << 20, 600)
    cluster.kill("host-1")
    os.unlink(os.path.join(cluster.dir, "host-1", "flash.img"))
    begin = time.monotonic()
    cluster.cleave("vdisk", "attach", "data", "--host", "2")
    print(f"  served by the other host {time.monotonic() - begin:.1f} s after the kill")
    moving.lead(2)
    verifier.until_written(verifier.written() + (64 << 20), 600)
    cluster.restart("host-1")
    check(_serves(cluster, 1, "data") == [], "the first host serves it, too")
    verifier.end_writing()
    check(verifier.finish(600)["reconnects"] >= 1, "it never lost the first host")
    cluster.stop()


@scenario
def hosts_share_a_small_log(context):
    """Two hosts write as fast as they can; one is killed, and what it left in the log does not keep the other from writing."""
    cluster = Cluster(context, arguments=["--hosts", "2", "--log-size", "64M"])
    cluster.start("--vdisk", "first:512M", "--vdisk", "second:512M")
    cluster.cleave("vdisk", "attach", "second", "--host", "2")
    first = MovingSocket(context, cluster, "first")
    second = MovingSocket(context, cluster, "second")
    second.lead(2)
    both = [Verifier(context, one, one.vdisk, 1 << 40, until_told=True) for one in (first, second)]
    for verifier in both:
        verifier.until_written(256 << 20, 600)
    cluster.kill("host-1")
    both[1].until_written(both[1].written() + (256 << 20), 600)
    cluster.cleave("vdisk", "attach", "first", "--host", "2")
    first.lead(2)
    for verifier in both:
        verifier.until_written(verifier.written() + (64 << 20), 600)
        verifier.end_writing()
    for verifier in both:
        verifier.finish(600)
    cluster.stop()


@scenario
def a_stopped_host_is_fenced(context):
    """A host is stopped; the other one takes its vdisk and writes; when the first one comes to, it serves nothing of it."""
    cluster = Cluster(context, arguments=["--hosts", "2"])
    cluster.start()
    cluster.cleave("vdisk", "create", "data", "512M", "--shares", "4")
    saved, later = context.path("saved"), context.path("later")
    Verifier(context, cluster, "data", 64 << 20, ["--save", saved]).finish(600)
    probe = Probe(context, cluster, "data")
    pid = cluster.pid("host-1")
    os.kill(pid, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        cluster.cleave("vdisk", "attach", "data", "--host", "2")
        print(f"  served by the other host {time.monotonic() - begin:.1f} s after the stop")
        moved = MovingSocket(context, cluster, "data")
        moved.lead(2)
        arguments = ["--load", saved, "--save", later]
        Verifier(context, moved, "data", 64 << 20, arguments).finish(600)
        # Of what has changed meanwhile, too: the first host has it all in its buffer, its map and its flash.
        probe.ask()
    finally:
        os.kill(pid, signal.SIGCONT)
    figures = probe.finish(120)
    check(figures["errors"] + figures["unanswered"] == 32, f"not all was refused: {figures}")
    until(lambda: _serves(cluster, 1, "data") == [], 30, "the host that came to keeps the vdisk")
    check(_serves(cluster, 2, "data") == ["serving"], "the other host has lost it")
    Verifier(context, moved, "data", 16 << 20, ["--load", later]).finish(600)
    cluster.stop()

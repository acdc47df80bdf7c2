"""Content verification through a vhost-user front end, without a guest."""

import os
import re
import threading
import time

from cluster import CONTROLLERS, HOST, Cluster, memory_of
from framework import check, scenario, until
from verifier import Verifier

BUDGET = 384 << 20


class MemoryWatch:
    """The most memory that the host engine had, over all its restarts."""

    def __init__(self, cluster):
        self.most = 0
        self._cluster = cluster
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self):
        while not self._over.wait(0.5):
            try:
                pid = self._cluster.processes()[HOST]["pid"]
                if pid is not None:
                    self.most = max(self.most, memory_of(pid))
            except (OSError, TypeError, AssertionError):
                # It ended while it was looked at.
                pass

    def end(self):
        """Stops watching; the maximum."""
        self._over.set()
        self._thread.join()
        return self.most


def _verify_with_kills(context, extra):
    cluster = Cluster(context, arguments=["--host-memory", str(BUDGET), *extra])
    cluster.start("--vdisk", "data:2G")
    write = context.options.write
    watch = MemoryWatch(cluster)
    verifier = Verifier(context, cluster, "data", write, ["--depth", "32"])
    for part in (1, 2, 3):
        verifier.until_written(write * part // 4, 1200)
        cluster.kill(HOST)
        time.sleep(0.2 * part)
        cluster.restart(HOST)
    figures = verifier.finish(1800)
    check(figures["reconnects"] >= 3, f"the engine was lost {figures['reconnects']} times, not 3")
    most = watch.end()
    print(
        f"e2e: wrote {figures['written'] >> 20} MiB, read {figures['read'] >> 20} MiB, "
        f"{figures['lost']} requests in flight at kills; the host engine had at most {most >> 20} MiB"
    )
    check(most > 0, "the host engine's memory was never seen")
    check(most <= BUDGET * 11 // 10, f"the host engine had {most} bytes, more than its budget + 10 %")
    cluster.stop()


@scenario
def content_survives_kills_of_the_host_engine(context):
    """Writes, zeroes, discards and reads at depth 32; the host engine is killed three times."""
    _verify_with_kills(context, [])


@scenario
def encrypted_content_survives_kills_of_the_host_engine(context):
    """The same, encrypted."""
    _verify_with_kills(context, ["--encrypt"])


@scenario
def content_survives_kills_of_controllers_and_lost_drives(context):
    """Each controller is killed and restarted, and two drive files are removed, under load."""
    cluster = Cluster(context)
    cluster.start("--vdisk", "data:1G")
    write = context.options.write // 2
    verifier = Verifier(context, cluster, "data", write)
    for part, name in enumerate(CONTROLLERS * 2, 1):
        verifier.until_written(write * part // 7, 1200)
        cluster.kill(name)
        time.sleep(0.5)
        cluster.restart(name)
    for part, number in ((5, 2), (6, 7)):
        verifier.until_written(write * part // 7, 1200)
        os.remove(cluster.drive(number))
    figures = verifier.finish(1800)
    check(figures["reconnects"] == 0, "the host engine ended")
    cluster.until_drives_lost(2, 7)
    cluster.stop()


def _written_and_read(context):
    """A cluster without flash: the vdisk `data` is being written, what `read` holds was saved."""
    cluster = Cluster(context, arguments=["--flash", "none"])
    cluster.start("--vdisk", "data:1G", "--vdisk", "read:256M")
    saved = context.path("saved")
    Verifier(context, cluster, "read", 96 << 20, ["--save", saved]).finish(600)
    verifier = Verifier(context, cluster, "data", 1 << 40, until_told=True)
    return cluster, verifier, saved


@scenario
def the_standby_takes_over(context):
    """The active controller is killed and stays away: the other takes over, and reads and writes go on."""
    cluster, verifier, saved = _written_and_read(context)
    for dead, other in (CONTROLLERS, CONTROLLERS[::-1]):
        verifier.until_written(verifier.written() + (16 << 20), 600)
        cluster.kill(dead)
        begin = time.monotonic()
        cluster.until_role(other, "active")
        print(f"  {other} was active {time.monotonic() - begin:.1f} s after {dead} was killed")
        # Everything is read and compared, with a controller down and writes of the other vdisk on their way.
        Verifier(context, cluster, "read", 0, ["--load", saved]).finish(600)
        check(cluster.controller(dead) is None, f"{dead} runs")
        cluster.restart(dead)
        cluster.until_role(dead, "standby")
        cluster.until_role(other, "active")
        verifier.until_written(verifier.written() + (16 << 20), 600)
    verifier.end_writing()
    check(verifier.finish(600)["reconnects"] == 0, "the host engine ended")
    cluster.stop()


@scenario
def the_role_moves_by_order(context):
    """An operator has the role moved, again and again, while a vdisk is written and another one is read."""
    cluster, verifier, saved = _written_and_read(context)
    stalls = []
    for active, other in (CONTROLLERS, CONTROLLERS[::-1]) * 4:
        verifier.until_written(verifier.written() + (4 << 20), 600)
        told = cluster.cleave("switch-over")
        check(told.startswith(f"{other} is active"), told)
        stalls.append(int(re.search(r"not served for (\d+) ms", told)[1]))
        cluster.until_role(other, "active")
        cluster.until_role(active, "standby")
    print(f"  hosts were not served for {sorted(stalls)} ms when the role moved by order")
    Verifier(context, cluster, "read", 0, ["--load", saved]).finish(600)
    verifier.until_written(verifier.written() + (16 << 20), 600)
    # Nobody can take it: the active one goes on.
    cluster.kill(CONTROLLERS[1])
    line = cluster.cleave_fails("switch-over")
    check("standby" in line, line)
    verifier.until_written(verifier.written() + (16 << 20), 600)
    cluster.restart(CONTROLLERS[1])
    cluster.until_role(CONTROLLERS[1], "standby")
    verifier.end_writing()
    check(verifier.finish(600)["reconnects"] == 0, "the host engine ended")
    cluster.stop()


@scenario
def a_controller_that_is_left_alone_goes_on(context):
    """Writes go on with either controller down; then the other is killed, too, and two drives of its log are gone."""
    cluster = Cluster(context)
    cluster.start("--vdisk", "data:1G")
    verifier = Verifier(context, cluster, "data", 1 << 40, until_told=True)

    def alone_on(name):
        return ((cluster.controller(name) or {}).get("log") or {}).get("alone_on") or []

    def until_alone(name):
        until(lambda: len(alone_on(name)) == 3, 60, lambda: f"{name}: {cluster.controller(name)}")

    for dead, left in (CONTROLLERS, CONTROLLERS[::-1]):
        verifier.until_written(verifier.written() + (16 << 20), 600)
        cluster.kill(dead)
        begin = time.monotonic()
        until_alone(left)
        print(f"  {left} acknowledged alone {time.monotonic() - begin:.1f} s after {dead} was killed")
        check(any("alone" in warning for warning in cluster.status()["warnings"]), "status warns of nothing")
        verifier.until_written(verifier.written() + (16 << 20), 600)
        drives = alone_on(left)
        cluster.kill(left)
        if left == CONTROLLERS[0]:
            for number in drives[:2]:
                os.remove(cluster.drive(number))
        cluster.cleave("restart", left)
        until_alone(left)
        verifier.until_written(verifier.written() + (16 << 20), 600)
        cluster.restart(dead)
        cluster.until_role(dead, "standby")
        cluster.until_role(left, "active")
        check(not alone_on(left), f"{left} says that it is alone still")
        verifier.until_written(verifier.written() + (16 << 20), 600)
    verifier.end_writing()
    check(verifier.finish(600)["reconnects"] == 0, "the host engine ended")
    cluster.stop()


@scenario
def several_queues_and_single_requests(context):
    """Four queues at once, and one request at a time, over drives in memory."""
    cluster = Cluster(context, arguments=["--memory-drives", "--drives", "3", "--drive-size", "2G"])
    cluster.start("--vdisk", "data:256M")
    saved = context.path("saved")
    arguments = ["--queues", "4", "--save", saved]
    Verifier(context, cluster, "data", 96 << 20, arguments).finish(600)
    arguments = ["--depth", "1", "--load", saved]
    Verifier(context, cluster, "data", 16 << 20, arguments).finish(600)
    cluster.stop()

"""etcd as the coordinator store: it may die and stand still under load, and guests notice nothing."""

import json
import os
import signal
import subprocess

from cluster import CONTROLLERS, HOST, Cluster
from errors import SMALL
from framework import check, scenario, until
from verifier import Verifier

MIB = 1 << 20
ETCD = "etcd"
# Nobody waits for longer than this for a process that stands still.
AWAY_SECONDS = 40


class Etcd:
    """The cluster's etcd, which a scenario may stop."""

    def __init__(self, context, cluster):
        self.cluster = cluster
        self._stopped = None
        context.at_end(self._end)

    def kill(self):
        """SIGKILL; the supervisor starts it again by itself."""
        pid = self.cluster.pid(ETCD)
        os.kill(pid, signal.SIGKILL)
        self._stopped = None

        def another():
            process = self.cluster.processes()[ETCD]
            return process["pid"] not in (None, pid)

        until(another, AWAY_SECONDS, "etcd was not started again")
        self.until_connected(True)

    def stop(self):
        """SIGSTOP, until the supervisor notices."""
        self._stopped = self.cluster.pid(ETCD)
        os.kill(self._stopped, signal.SIGSTOP)
        self.until_connected(False)

    def go_on(self):
        """SIGCONT, until everybody is connected."""
        os.kill(self._stopped, signal.SIGCONT)
        self._stopped = None
        self.until_connected(True)

    def until_connected(self, connected):
        """Waits until supervisor and engines have, or have lost, the store."""

        def seen():
            status = self.cluster.status()
            engines = status["hosts"] + status["controllers"]
            answers = [status["store"]["connected"]]
            answers += [engine["store_connected"] for engine in engines]
            return all(answer is connected for answer in answers)

        until(seen, AWAY_SECONDS, f"not everybody saw the store {'back' if connected else 'away'}")

    def _end(self):
        if self._stopped is not None:
            os.kill(self._stopped, signal.SIGCONT)
            os.kill(self._stopped, signal.SIGKILL)


@scenario
def io_goes_on_without_etcd(context):
    """etcd is killed and stopped under verified load: no guest error, writes advance, nothing is lost."""
    cluster = Cluster(context, arguments=SMALL + ["--store", "etcd"])
    etcd = Etcd(context, cluster)
    cluster.start("--vdisk", "data:256M")
    check(cluster.status()["store"]["kind"] == ETCD, "the store is another one")
    check("store: etcd" in cluster.cleave("status"), "status does not show it")
    for name in ("etcd.password", "etcd-root.password", "etcd.key", "etcd-client.key"):
        mode = os.stat(os.path.join(cluster.dir, "keys", name)).st_mode
        check(mode & 0o077 == 0, f"others can read {name}")
    saved = context.path("saved")
    arguments = ["--depth", "16", "--save", saved]
    verifier = Verifier(context, cluster, "data", 1 << 40, arguments, until_told=True)

    def advances(by, seconds=120):
        before = verifier.written()
        verifier.until_written(before + by, seconds)
        return verifier.written() - before

    advances(16 * MIB)
    for _ in range(2):
        etcd.kill()
        advances(8 * MIB)
    check(cluster.processes()[ETCD]["restarts"] == 2, "it was not counted")

    etcd.stop()
    away = advances(64 * MIB, 300)
    check(not cluster.status()["store"]["connected"], "it came back by itself")
    line = cluster.cleave_fails("vdisk", "create", "other", "64M")
    check("store is away" in line, line)
    warnings = cluster.status()["warnings"]
    check(any("store is away" in warning for warning in warnings), f"{warnings}")
    etcd.go_on()
    cluster.cleave("vdisk", "create", "other", "64M")
    advances(8 * MIB)

    # Stopped and then killed, so that it never goes on.
    etcd.stop()
    advances(8 * MIB)
    etcd.kill()
    etcd.until_connected(True)

    # Engines that start find everything there.
    for name in (HOST, CONTROLLERS[1], HOST):
        cluster.kill(name)
        cluster.restart(name)
        advances(8 * MIB)
    verifier.end_writing()
    figures = verifier.finish(600)
    print(f"  {away >> 20} MiB written while etcd stood still; {figures['reconnects']} reconnections, all by restarts")
    check(figures["reconnects"] == 2, f"the guest noticed more than the two restarts: {figures}")
    cluster.stop()
    cluster.start()
    Verifier(context, cluster, "data", 16 * MIB, ["--load", saved]).finish(300)
    cluster.stop()


@scenario
def a_missing_etcd_is_named_and_the_store_stays_what_it_is(context):
    """Without etcd the start says which package to install; with another store it is refused."""
    cluster = Cluster(context, arguments=SMALL)
    line = cluster.command("dev", *SMALL, "--store", "etcd")
    environment = dict(os.environ, PATH=context.folder)
    done = subprocess.run(
        line, capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    check(done.returncode == 1, f"it ended with {done.returncode}")
    check("etcd is not installed" in done.stderr and "etcd-server" in done.stderr, done.stderr)
    check(done.stderr.count("\n") == 1, f"more than one line: {done.stderr!r}")
    cluster.start("--store", "etcd", "--vdisk", "data:64M")
    cluster.kill_supervisor()
    line = cluster.refused("--store", "redb")
    check("was created with --store etcd" in line, line)
    cluster.start()
    check([one["name"] for one in _vdisks(cluster)] == ["data"], "the vdisk is gone")
    cluster.stop()


def _vdisks(cluster):
    return json.loads(cluster.cleave("vdisk", "list", "--json"))

"""The host engine's cores: what they cost while nothing happens, and how they come and go under load."""

import json
import os
import re
import subprocess
import time

from cluster import HOST, Cluster
from errors import SMALL
from framework import check, scenario, until
from verifier import Verifier

MIB = 1 << 20
DISKS = 16
PAUSE_SECONDS = 20


def _cpu(cluster):
    """The cores in status."""
    return cluster.status()["hosts"][0]["cpu"]


def _vdisks_by_core(cluster):
    """How many vdisks each core serves."""
    return sorted(core["vdisks"] for core in _cpu(cluster)["cores"])


def _longest_pause(cluster):
    """Milliseconds from asking a core for a vdisk until another one serves it, map runs before the pause included."""
    with open(os.path.join(cluster.dir, "log", HOST + ".log"), encoding="utf-8", errors="replace") as log:
        found = re.findall(r"serving on another core.*took=([0-9.]+)(s|ms|µs)", log.read())
    units = {"s": 1000, "ms": 1, "µs": 0.001}
    return max((float(number) * units[unit] for number, unit in found), default=0.0)


class Idle:
    """Front ends of many disks that ask for nothing but when they are told to."""

    def __init__(self, context, cluster, vdisks):
        line = [context.options.program("cleave-perf"), "idle", *map(cluster.socket, vdisks)]
        self._process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        context.at_end(self._process.kill)
        said = self._process.stdout.readline()
        check(said == "idle\n", f"cleave-perf idle said {said!r}")

    def first_requests(self):
        """Microseconds that each disk's request took."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return sorted(int(one) for one in self._process.stdout.readline().split())

    def end(self):
        """They go."""
        self._process.stdin.close()
        check(self._process.wait(30) == 0, "cleave-perf idle failed")


def _work_of(pid):
    """Seconds of CPU time that a process had, and how often its threads slept."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    sleeps = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status", encoding="ascii") as file:
            found = [line for line in file if line.startswith("voluntary_ctxt_switches")]
        sleeps += int(found[0].split()[1])
    return seconds, sleeps


@scenario
def sixteen_idle_disks_cost_next_to_nothing(context):
    """Connected, with two queues each: under 1 % of a core; the first request after the pause is answered at once."""
    cluster = Cluster(context, arguments=SMALL)
    names = [f"d{number}" for number in range(DISKS)]
    cluster.start(*[part for name in names for part in ("--vdisk", f"{name}:64M")])
    idle = Idle(context, cluster, names)
    check(all(one["attached"] for one in cluster.status()["hosts"][0]["vdisks"]), "not all are attached")
    pid = cluster.pid(HOST)
    for cores in ("auto", "2"):
        cluster.cleave("host", "cpu", "--cores", cores)
        # What the start has left to do is done.
        time.sleep(5)
        before, since = _work_of(pid), time.monotonic()
        time.sleep(PAUSE_SECONDS)
        times = idle.first_requests()
        after, passed = _work_of(pid), time.monotonic() - since
        percent = (after[0] - before[0]) * 100 / passed
        sleeps = (after[1] - before[1]) / passed
        count = len(_cpu(cluster)["cores"])
        print(
            f"  {DISKS} idle disks on {count} cores: {percent:.2f} % of a core, {sleeps:.0f} sleeps a second; "
            f"first requests took {times[DISKS // 2]} us, the longest {times[-1]} us"
        )
        check(len(times) == DISKS, f"{times}")
        # A core that polled, or woke for each disk, would be far above both.
        check(sleeps < 200, f"the engine slept {sleeps:.0f} times a second")
        check(percent < 1, f"the engine used {percent:.2f} % of a core")
    idle.end()
    cluster.stop()


@scenario
def cores_come_and_go_while_front_ends_stay(context):
    """One core, two, one again, under load: vdisks move, front ends stay connected, what is read is right."""
    cluster = Cluster(context, arguments=SMALL)
    cluster.start(*[part for name in "abcd" for part in ("--vdisk", f"{name}:256M")])
    usual = cluster.cleave("host", "cpu", "--insane", "on")
    check("Insane Mode" in usual, usual)
    cluster.cleave("host", "cpu", "--insane", "off", "--cores", "1")
    arguments = [["--queues", "4"], ["--depth", "8"], ["--depth", "32"]]
    verifiers = [
        Verifier(context, cluster, name, 8 << 30, extra, until_told=True)
        for name, extra in zip("abc", arguments)
    ]

    def go_on(megabytes=8):
        for verifier in verifiers:
            verifier.until_written(verifier.written() + megabytes * MIB, 300)

    go_on(16)
    processors = len(os.sched_getaffinity(0))
    wanted = min(2, processors)
    for _ in range(4):
        cluster.cleave("host", "cpu", "--cores", "2")
        until(lambda: not _cpu(cluster)["changing"], 60, "the cores do not settle")
        check(len(_cpu(cluster)["cores"]) == wanted, f"{_cpu(cluster)}")
        check(_vdisks_by_core(cluster) == ([2, 2] if wanted == 2 else [4]), f"{_cpu(cluster)}")
        go_on()
        cluster.cleave("host", "cpu", "--cores", "1")
        until(lambda: not _cpu(cluster)["changing"], 60, "the cores do not settle")
        check(_vdisks_by_core(cluster) == [4], f"{_cpu(cluster)}")
        go_on()
    moves = _cpu(cluster)["moves"]
    numbers = [core["core"] for core in _cpu(cluster)["cores"]]
    print(f"  {moves} vdisks moved; their guests waited at most {_longest_pause(cluster):.0f} ms; the last cores are {numbers}")
    check(moves >= 16 or wanted < 2, f"only {moves} vdisks moved")
    for verifier in verifiers:
        check(verifier.reconnects() == 0, f"a front end was disconnected: {verifier.output()[-500:]}")
    flash = cluster.status()["hosts"][0]["flash"]["devices"]
    check(all(device["state"] == "in_use" for device in flash), f"{flash}")

    # A kill in the middle of it, and what was decided is kept.
    changing = subprocess.Popen(
        cluster.command("host", "cpu", "--cores", "2"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(0.3)
    cluster.kill(HOST)
    changing.wait(200)
    cluster.restart(HOST)
    check(len(_cpu(cluster)["cores"]) == wanted, f"{_cpu(cluster)}")
    go_on()
    cluster.stop()
    cluster.start()
    check(len(_cpu(cluster)["cores"]) == wanted, f"{_cpu(cluster)}")
    go_on()
    for verifier in verifiers:
        verifier.end_writing()
    for verifier in verifiers:
        verifier.finish(600)
    shown = json.loads(cluster.cleave("host", "cpu", "--cores", "auto", "--json"))
    check(shown[0]["cores_configured"] == 0 and not shown[0]["changing"], f"{shown}")
    cluster.stop()


@scenario
def one_vdisk_is_served_by_several_cores(context):
    """A vdisk of four shares under load while cores come and go and the engine is killed; grown and deleted at the end."""
    cluster = Cluster(context, arguments=SMALL)
    cluster.start("--vdisk", "small:64M")
    cluster.cleave("host", "cpu", "--cores", "1")
    cluster.cleave("vdisk", "create", "big", "256M", "--shares", "4")
    cluster.cleave("vdisk", "create", "next", "64M")

    def vdisk(name):
        found = [one for one in cluster.status()["hosts"][0]["vdisks"] if one["name"] == name]
        return found[0] if found else None

    until(lambda: vdisk("next") and vdisk("next")["state"] == "serving", 60, "the vdisks are not served")
    # Each share has an identity of its own.
    check(vdisk("next")["id"] == vdisk("big")["id"] + 4, f"{vdisk('next')}")
    check(len(vdisk("big")["shares"]) == 4 and len(vdisk("next")["shares"]) == 1, f"{vdisk('big')}")
    verifiers = [
        Verifier(context, cluster, "big", 8 << 30, ["--depth", "32"], until_told=True),
        Verifier(context, cluster, "next", 8 << 30, ["--depth", "8"], until_told=True),
    ]

    def go_on(megabytes=8):
        for verifier in verifiers:
            verifier.until_written(verifier.written() + megabytes * MIB, 300)

    def settle(cores):
        until(lambda: not _cpu(cluster)["changing"], 60, "the cores do not settle")
        shares = vdisk("big")["shares"]
        check(len(set(shares)) == min(cores, 4), f"the shares are on {shares}")

    processors = len(os.sched_getaffinity(0))
    wanted = min(2, processors)
    go_on(16)
    for _ in range(3):
        cluster.cleave("host", "cpu", "--cores", "2")
        settle(wanted)
        go_on()
        cluster.cleave("host", "cpu", "--cores", "1")
        settle(1)
        go_on()
    moves = _cpu(cluster)["moves"]
    print(f"  {moves} shares moved; their guests waited at most {_longest_pause(cluster):.0f} ms")
    check(moves >= 9 or wanted < 2, f"only {moves} shares moved")
    for verifier in verifiers:
        check(verifier.reconnects() == 0, f"a front end was disconnected: {verifier.output()[-500:]}")

    # On two cores, and while shares are on their way.
    for cores in ("2", "1", "2"):
        changing = subprocess.Popen(
            cluster.command("host", "cpu", "--cores", cores), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(0.2)
        cluster.kill(HOST)
        changing.wait(200)
        cluster.restart(HOST)
        go_on()
    settle(wanted)
    go_on()
    for verifier in verifiers:
        verifier.end_writing()
    for verifier in verifiers:
        verifier.finish(600)
    cluster.stop()
    cluster.start()
    cluster.cleave("vdisk", "resize", "big", "300M")
    until(lambda: vdisk("big")["size"] == 300 * MIB, 30, "the vdisk does not grow")
    cluster.cleave("vdisk", "delete", "big")
    check(vdisk("big") is None, f"{vdisk('big')}")
    cluster.stop()

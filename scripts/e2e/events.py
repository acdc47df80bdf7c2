"""`cleave events`: what is broken is told with its subject and cause, also after everything was restarted."""

import json
import os
import subprocess

from cluster import Cluster
from errors import SMALL
from framework import check, scenario, until

HOST = "host-1"
ACTIVE, STANDBY = "datanode-1-a", "datanode-1-b"


def _events(cluster, *options):
    """`cleave events --json`: events, unreachable."""
    return json.loads(cluster.cleave("events", "--json", *options))


def _until_told(cluster, engine, kind, subject, name):
    """Waits for an event of an engine, and gives it."""
    found = []

    def told():
        events = _events(cluster, "--engine", engine)["events"]
        found[:] = [
            event
            for event in events
            if (event["kind"], event["subject"], event["name"]) == (kind, subject, name)
        ]
        return bool(found)

    until(told, 30, lambda: f"{engine} does not tell {kind} of {subject} {name}: {_events(cluster)}")
    return found[-1]


@scenario
def events_tell_what_was_broken_and_outlive_restarts(context):
    """A drive is lost, flash truncated, both controllers and the host engine killed: each is told, with its cause."""
    flash = context.path("flash")
    cluster = Cluster(context, arguments=SMALL)
    cluster.start("--vdisk", "data:64M", "--flash", flash, "--flash-size", "64M")
    _until_told(cluster, HOST, "flash_in_use", "flash", flash)

    os.remove(cluster.drive(2))
    lost = _until_told(cluster, ACTIVE, "drive_lost", "drive", "2")
    check(lost["cause"] and lost["severity"] == "error" and "replace" in lost["action"], f"{lost}")

    os.truncate(flash, 1 << 20)
    retired = _until_told(cluster, HOST, "flash_retired", "flash", flash)
    check(retired["cause"], f"{retired}")

    cluster.kill(STANDBY)
    ended = _until_told(cluster, "cleave", "ended", "engine", STANDBY)
    check("signal" in ended["cause"] or "killed" in ended["cause"], f"{ended}")
    _until_told(cluster, ACTIVE, "peer_away", "controller", STANDBY)
    _until_told(cluster, ACTIVE, "alone", "controller", ACTIVE)
    away = _events(cluster)["unreachable"]
    check([one["engine"] for one in away] == [STANDBY], f"{away}")
    cluster.restart(STANDBY)
    _until_told(cluster, STANDBY, "started_unclean", "engine", STANDBY)
    _until_told(cluster, ACTIVE, "mirrored", "controller", STANDBY)

    cluster.kill(ACTIVE)
    _until_told(cluster, STANDBY, "took_over", "controller", STANDBY)
    cluster.restart(ACTIVE)
    cluster.kill(HOST)
    _until_told(cluster, STANDBY, "host_gone", "host", HOST)
    cluster.restart(HOST)
    _until_told(cluster, HOST, "started_unclean", "engine", HOST)

    before = _events(cluster)["events"]
    cluster.stop()
    # Nothing of the cluster runs: what is kept is shown.
    kept = _events(cluster)
    check(len(kept["unreachable"]) == 4, f"{kept['unreachable']}")
    of = lambda events: {(event["engine"], event["number"]): event["kind"] for event in events}
    missing = of(before).items() - of(kept["events"]).items()
    check(not missing, f"not kept: {missing}")
    cluster.start()
    after = _events(cluster)
    missing = of(before).items() - of(after["events"]).items()
    check(not missing and not after["unreachable"], f"not kept: {missing}, {after['unreachable']}")
    times = [event["at"] for event in after["events"]]
    check(times == sorted(times), "events are not in the order of time")
    errors = _events(cluster, "--severity", "error", "--engine", ACTIVE)["events"]
    check(all(event["severity"] == "error" for event in errors) and errors, f"{errors}")

    # Each engine answers by itself, too, and people get lines.
    socket = os.path.join(cluster.dir, "run", f"{HOST}.sock")
    alone = json.loads(cluster.cleave("events", "--json", "--socket", socket))["events"]
    check({event["engine"] for event in alone} == {HOST}, f"{alone}")
    shown = cluster.cleave("events", "--since", "1h", "--severity", "error")
    check("drive 2 is lost" in shown and "to do:" in shown, shown)

    follower = subprocess.Popen(
        cluster.command("events", "--follow", "--json", "--since", "1s"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        cluster.kill(STANDBY)
        for line in follower.stdout:
            event = json.loads(line)
            if (event["kind"], event["name"]) == ("peer_away", STANDBY):
                break
        else:
            check(False, "--follow ended")
    finally:
        follower.kill()
        follower.wait()
    cluster.restart(STANDBY)
    cluster.stop()

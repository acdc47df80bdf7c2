"""Starting, stopping, losing and changing clusters."""

import json
import os
import signal
import time

from cluster import CONTROLLERS, ENGINES, HOST, Cluster
from errors import SMALL
from framework import check, scenario, until
from verifier import Verifier


@scenario
def a_clean_stop_and_a_start_keep_everything(context):
    """The log goes to the vaults and comes back; SIGINT and SIGPWR stop as SIGTERM does."""
    cluster = Cluster(context)
    cluster.start("--vdisk", "data:512M")
    saved = context.path("saved")
    Verifier(context, cluster, "data", 96 << 20, ["--save", saved]).finish(300)
    records = cluster.status()["controllers"][0]["log"]["records"]
    check(records > 0, "nothing was left in the log, so the vault shows nothing")
    cluster.stop(signal.SIGINT)
    for name in CONTROLLERS:
        vault = os.path.join(cluster.dir, name, "vault")
        check(os.path.getsize(vault) > 8192, f"{vault} holds no image")
    for with_signal in (signal.SIGPWR, signal.SIGTERM):
        cluster.start("--vdisk", "data:512M")
        Verifier(context, cluster, "data", 32 << 20, ["--load", saved, "--save", saved]).finish(300)
        told = [line for line in cluster.cleave("events").splitlines() if " MiB in " in line]
        check(any("was loaded" in line and " s per GiB)" in line for line in told), f"{told}")
        check(any("at the stop" in line and " s per GiB)" in line for line in told), f"{told}")
        cluster.stop(with_signal)


@scenario
def children_stop_cleanly_when_the_supervisor_is_killed(context):
    """The kernel tells them; they write the vaults; the next start has everything, under load too."""
    cluster = Cluster(context)
    cluster.start("--vdisk", "data:512M")
    write = 512 << 20
    verifier = Verifier(context, cluster, "data", write)
    verifier.until_written(write // 4, 600)
    cluster.kill_supervisor()
    cluster.start()
    verifier.until_written(write // 2, 600)
    figures = verifier.finish(900)
    check(figures["reconnects"] >= 1, "the verifier did not notice")
    cluster.stop()


@scenario
def a_killed_child_ends_nothing_else(context):
    """It stays down and is named until it is restarted by hand; with --restart it comes by itself."""
    cluster = Cluster(context, arguments=SMALL)
    cluster.start("--vdisk", "data:256M")
    for name in ENGINES:
        before = cluster.processes()
        cluster.kill(name)
        time.sleep(1)
        after = cluster.processes()
        check(after[name]["state"] == "down", f"{name} is {after[name]['state']}")
        for other in ENGINES:
            same = after[other]["pid"] == before[other]["pid"]
            check(other == name or same, f"{other} did not outlive {name}")
        warnings = "\n".join(cluster.status()["warnings"])
        check(name in warnings and "signal 9" in warnings, f"{warnings!r} does not name {name}")
        cluster.restart(name)
        check(cluster.processes()[name]["restarts"] == 1, f"{name} was not counted")
    line = cluster.cleave_fails("restart", "nobody")
    check("nobody is no engine" in line, line)
    Verifier(context, cluster, "data", 16 << 20).finish(300)
    cluster.stop()

    cluster.start("--restart")
    for name in ENGINES:
        cluster.kill(name)
        until(lambda name=name: cluster.processes()[name]["pid"], 30, f"{name} stayed down")
        cluster.until_status_ready()
    cluster.stop()


@scenario
def losing_both_controllers_is_named_and_needs_consent(context):
    """Without a log the data node stays down and says so; consent starts it with an empty log."""
    cluster = Cluster(context)
    cluster.start("--vdisk", "data:512M")
    saved = context.path("saved")
    Verifier(context, cluster, "data", 96 << 20, ["--save", saved]).finish(300)
    line = cluster.cleave_fails("start-empty", "--accept-data-loss")
    check("a controller" in line, line)
    for name in CONTROLLERS:
        cluster.kill(name)
    for name in CONTROLLERS:
        cluster.cleave("restart", name)

    def told():
        return any("has no log" in warning for warning in cluster.status()["warnings"])

    until(told, 60, "status does not say that the log is lost")
    time.sleep(3)
    check(not cluster.status()["ready"], "it is ready without a log")
    line = cluster.cleave_fails("start-empty")
    check("--accept-data-loss" in line, line)
    cluster.cleave("start-empty", "--accept-data-loss")
    cluster.until_status_ready()
    # The host engine lived, so it still had what the log lost, and has sent it again (C7).
    Verifier(context, cluster, "data", 32 << 20, ["--load", saved]).finish(300)
    cluster.stop()


@scenario
def losing_all_engines_is_survived_by_the_cluster(context):
    """What only memory held is lost, with consent; the cluster works on, now and after a restart."""
    cluster = Cluster(context)
    cluster.start("--vdisk", "data:256M", "--vdisk", "other:256M")
    Verifier(context, cluster, "data", 32 << 20).finish(300)
    for name in ENGINES:
        cluster.kill(name)
    for name in CONTROLLERS + [HOST]:
        cluster.cleave("restart", name)

    def told():
        return any("has no log" in warning for warning in cluster.status()["warnings"])

    until(told, 60, "status does not say that the log is lost")
    cluster.cleave("start-empty", "--accept-data-loss")
    cluster.until_status_ready()
    saved = context.path("saved")
    Verifier(context, cluster, "other", 64 << 20, ["--save", saved]).finish(300)
    cluster.stop()
    cluster.start()
    Verifier(context, cluster, "other", 16 << 20, ["--load", saved]).finish(300)
    cluster.stop()


@scenario
def vdisks_are_created_listed_resized_deleted_and_attached(context):
    """The namespace through the command line, with content checked on the way."""
    cluster = Cluster(context, arguments=SMALL)
    cluster.start()
    check(json.loads(cluster.cleave("vdisk", "list", "--json")) == [], "there are vdisks already")
    cluster.cleave("vdisk", "create", "one", "64M")
    cluster.cleave("vdisk", "create", "two", "128M")
    check("exists already" in cluster.cleave_fails("vdisk", "create", "one", "64M"), "twice")
    line = cluster.cleave_fails("vdisk", "create", "three", "64M", "--encrypt")
    check("without a key" in line, line)
    cluster.until_status_ready()
    listed = json.loads(cluster.cleave("vdisk", "list", "--json"))
    check([vdisk["name"] for vdisk in listed] == ["one", "two"], f"{listed}")
    saved = context.path("saved")
    Verifier(context, cluster, "one", 16 << 20, ["--save", saved]).finish(300)
    Verifier(context, cluster, "two", 16 << 20).finish(300)

    text = cluster.cleave("vdisk", "attach", "one")
    for part in (cluster.socket("one"), "vhost-user-blk-pci", "reconnect=1", "share=on", "<disk"):
        check(part in text, f"{part} is not in {text}")
    check("none of that name" in cluster.cleave_fails("vdisk", "attach", "three"), "attach")

    cluster.cleave("vdisk", "resize", "one", "96M")
    line = cluster.cleave_fails("vdisk", "resize", "one", "32M")
    check("--accept-data-loss" in line, line)
    # What was there stays; beyond it there are zeros.
    Verifier(context, cluster, "one", 0, ["--load", saved, "--range", "64M"]).finish(300)
    size = _until_size(cluster, "one", 96 << 20)
    check(size == 96 << 20, f"its size is {size}")

    cluster.cleave("vdisk", "delete", "two")
    check("none of that name" in cluster.cleave_fails("vdisk", "delete", "two"), "deleted twice")
    until(lambda: not os.path.exists(cluster.socket("two")), 10, "its socket stays")
    cluster.cleave("vdisk", "create", "two", "64M")
    cluster.until_status_ready()
    # A new vdisk of an old name is empty.
    Verifier(context, cluster, "two", 8 << 20).finish(300)
    cluster.stop()
    cluster.start()
    listed = json.loads(cluster.cleave("vdisk", "list", "--json"))
    check([vdisk["size"] for vdisk in listed] == [96 << 20, 64 << 20], f"{listed}")
    Verifier(context, cluster, "one", 0, ["--load", saved, "--range", "64M"]).finish(300)
    cluster.stop()


def _until_size(cluster, name, size):
    def of_status():
        vdisks = cluster.status()["hosts"][0]["vdisks"]
        found = [vdisk["size"] for vdisk in vdisks if vdisk["name"] == name]
        return found[0] if found == [size] else None

    return until(of_status, 20, f"the host engine does not know the size {size} of {name}")


@scenario
def drives_in_memory_do_not_survive(context):
    """With --memory-drives there are no drive files, and the next start is a new cluster."""
    arguments = ["--memory-drives", "--drives", "6", "--drive-size", "1G"]
    cluster = Cluster(context, arguments=arguments)
    cluster.start("--vdisk", "data:128M")
    first = cluster.status()["cluster"]
    check(os.listdir(os.path.join(cluster.dir, "drives")) == [], "there are drive files")
    Verifier(context, cluster, "data", 32 << 20).finish(300)
    cluster.stop()
    cluster.start("--vdisk", "data:128M")
    check(cluster.status()["cluster"] != first, "it is the same cluster")
    # All zeros again, or this fails.
    Verifier(context, cluster, "data", 8 << 20).finish(300)
    cluster.kill(HOST)
    cluster.restart(HOST)
    cluster.stop()

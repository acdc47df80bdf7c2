"""Every named crash point of every process: the process dies there, under load, and is started again; in the
end all content is checked.

One cluster does most of it: its processes are started one by one, so that each can be given the next point at
which it dies. Whoever starts after a crash meets what it left, often on the way to its own. Points that need a
certain event have a provocation. What the supervisor does is met with `cleave dev` itself.

The list of points is the programs' own: one that is not tried here fails the test.
"""

import os
import re
import subprocess
import threading

from cluster import CONTROLLERS, HOST, Cluster
from framework import check, until
from verifier import Verifier

from torture.drives import SickDrive
from torture.load import Load
from torture.parts import CRASH_POINT, STORE, Parts

ACTIVE, STANDBY = CONTROLLERS
REACHED = 'crash point reached point="{}"'
REACH_SECONDS = 45
START_SECONDS = 45
# With six drives stripes have three data shards: destage, commits and map runs come often. One drive may be lost, and its
# shards have somewhere to go.
SMALL = ["--drives", "6", "--drive-size", "8G", "--log-size", "64M", "--host-memory", "256M"]
RATE = 24 << 20
# A part that dies must come back as what it was, until the role's own points.
NO_TAKE_OVER = "take_over = false\nalone = false\n"


def all_points(context):
    """The names that the programs know."""
    done = subprocess.run(
        [context.options.program("cleave"), "--dir", context.path("none"), "status"],
        env=dict(os.environ, **{CRASH_POINT: "?"}),
        capture_output=True,
        text=True,
        check=False,
    )
    names = re.search(r"names are (.*)$", done.stderr.strip())
    check(names, f"the programs name no crash points: {done.stderr}")
    return names[1].split(", ")


class Crashes:
    """Lets parts of a cluster die, point after point."""

    def __init__(self, parts, load, sick, say):
        self._parts = parts
        self.load = load
        self.sick = sick
        self._say = say
        self.tried = []

    def die(self, name, point, provoke=None, nth=1):
        """Starts a part that is down; it dies at the point, perhaps because of what `provoke` does."""
        self._parts.start_part(name, f"{point}:{nth}")
        if provoke is not None:
            provoke()
        self.until_dead(name, point)

    def until_dead(self, name, point):
        """Waits until a part has died at its point."""
        parts = self._parts
        parts.until_dead(name, REACH_SECONDS, lambda: f"{name} did not reach {point}: {parts.tail(name)}")
        said = REACHED.format(point)
        check(said in parts.tail(name, 3), lambda: f"{name} died, but not at {point}: {parts.tail(name)}")
        self.load.check()
        self.tried.append(point)
        self._say(f"  {name} died at {point}")

    def kill(self, *names):
        """Parts die without any choice of place."""
        for name in names:
            if name == HOST:
                self.load.until_attached()
            self._parts.kill(name)

    def start(self, *names):
        """Parts that are down run again, and everything is whole; front ends go on."""
        for name in names:
            self._parts.start_part(name)
        self._parts.until_whole()
        self.load.until_progress()


def host_points(crashes, parts):
    """The host engine; it is down before and after."""
    # QEMU 7.2 never connects again when the engine dies under the first message of a connection. So it sleeps
    # while engines die soon after their start.
    crashes.load.pause_guest()
    for point in (
        # Opening: each start comes by, with what the one before left.
        "host.locked",
        "host.epoch.taken",
        "host.sealed",
        "host.map.read",
        "host.records.fetched",
        "host.record.buffered",
        "host.append.sent",
        "host.append.mirrored",
        "host.granted",
        "host.stripe.packed",
        "host.shard.written",
        "host.shards.written",
        "host.committed",
        "host.commit.applied",
        "host.run.begun",
        "host.run.pieces",
        "host.run.committed",
        # Flash is a cache; what it has must still be right, and what it lost must not matter.
        "host.flash.scanned",
        "host.flash.header",
        "host.flash.kept",
    ):
        crashes.die(HOST, point, nth=50 if point.startswith("host.append.") else 1)
    crashes.load.resume_guest()
    # What becomes of a request of the guest, whose inflight region outlives the engine.
    for step in ("taken", "answered", "publishing", "published", "unmarked"):
        crashes.die(HOST, "host.request." + step, nth=50)
    # The guest has requests in flight, because the log does not take them, when the engine dies.
    crashes.start(HOST)
    crashes.load.until_guest_goes_on()
    crashes.kill(ACTIVE)
    until(lambda: _in_flight(parts, "guest") > 0, START_SECONDS, "the guest asks for nothing")
    crashes.kill(HOST)
    parts.start_part(ACTIVE)
    crashes.die(HOST, "host.requests.found")

    def break_connections():
        parts.until_whole()
        crashes.load.until_progress()
        crashes.kill(ACTIVE)
        parts.start_part(ACTIVE)

    crashes.die(HOST, "host.appends.resent", break_connections)
    _handover(crashes, parts)
    crashes.start(HOST)
    for point in ("host.closed", "host.released"):
        crashes.load.until_attached()
        parts.terminate(HOST)
        parts.until_stopped(HOST)
        parts.start_part(HOST, point)
        parts.until_whole()
        crashes.load.until_attached()
        parts.terminate(HOST)
        crashes.until_dead(HOST, point)
        crashes.start(HOST)
        crashes.load.until_attached()
    _deletion(crashes, parts, HOST, "host.deleted")
    crashes.kill(HOST)


def _handover(crashes, parts):
    """The engine dies while a vdisk goes from one of its cores to another; it is down before and after."""
    cpu = parts.command("host", "cpu", "--cores")
    crashes.start(HOST)
    crashes.load.until_attached()
    parts.cleave("host", "cpu", "--cores", "1")
    crashes.kill(HOST)
    parts.start_part(HOST, "host.handed")
    parts.until_whole()
    crashes.load.until_attached()
    # It cannot say how it went.
    with subprocess.Popen([*cpu, "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        crashes.until_dead(HOST, "host.handed")
    # The next start has both cores at once.
    crashes.start(HOST)
    crashes.load.until_attached()
    parts.cleave("host", "cpu", "--cores", "auto")
    crashes.kill(HOST)


def _in_flight(parts, vdisk):
    """Requests of a vdisk's guest that are not done."""
    host = parts.ask(HOST)
    return sum(one["in_flight"] for one in host["vdisks"] if one["name"] == vdisk) if host else 0


def _deletion(crashes, parts, name, point):
    """A vdisk is deleted, and a part dies on the way; the deletion ends all the same."""
    parts.cleave("vdisk", "create", "gone", "64M")
    parts.until_whole()
    Verifier(parts.context, parts, "gone", 4 << 20).finish(120)
    crashes.kill(name)
    parts.start_part(name, point)
    parts.until_whole()
    deleted = threading.Thread(target=lambda: parts.cleave("vdisk", "delete", "gone"))
    deleted.start()
    crashes.until_dead(name, point)
    parts.start_part(name)
    deleted.join()
    parts.until_whole()
    listed = parts.cleave("vdisk", "list")
    check("gone" not in listed, f"it is still there: {listed}")


def active_points(crashes, parts):
    """The active controller; it is down before and after."""

    def restart_host():
        parts.kill(HOST)
        parts.start_part(HOST)

    for point in (
        "mirror.copy.begun",
        "mirror.copy.taken",
        "mirror.join.prepared",
        "mirror.join.recorded",
        "mirror.joined",
        "log.appended",
        "log.forwarded",
        "log.held",
        "log.acknowledged",
        "log.grant.appended",
        "drive.slot.written",
        "drive.slot.flushed",
        "log.commit.appended",
        "log.released",
        "catalog.applying",
        "catalog.applied",
    ):
        crashes.die(ACTIVE, point, nth=20 if point in ("log.appended", "log.held") else 1)
    # A host says hello to the active by a new incarnation, and seals. The guest sleeps meanwhile, as above.
    crashes.start(ACTIVE)
    crashes.load.until_attached()
    crashes.load.pause_guest()
    crashes.kill(ACTIVE)
    for point in ("log.host-start.appended", "log.seal.appended"):
        crashes.die(ACTIVE, point, restart_host)
    crashes.load.resume_guest()
    crashes.start(ACTIVE)
    crashes.load.until_attached()
    _deletion(crashes, parts, ACTIVE, "log.delete.appended")
    crashes.kill(ACTIVE)

    # One copy of a superblock is damaged: it is written anew.
    with open(parts.drive(1), "r+b") as drive:
        drive.seek(4096 + 100)
        drive.write(b"\xff" * 8)
    crashes.die(ACTIVE, "drive.superblock.written")

    # There is no space behind a drive: stripes are given up, and their grants given back. Then the drive is gone.
    crashes.die(ACTIVE, "log.grant-end.appended", lambda: _under_load(crashes, parts, crashes.sick.fill))
    crashes.sick.empty()
    crashes.die(ACTIVE, "log.drive.appended", lambda: _under_load(crashes, parts, crashes.sick.unlink))
    crashes.sick.take_out()
    # Its shards are written anew on the others.
    for point in ("rebuild.lent", "rebuild.written", "log.swap.appended", "rebuild.swapped"):
        crashes.die(ACTIVE, point)

    def scrub_now():
        _until_active(parts, ACTIVE)
        parts.ask(ACTIVE, "scrub", datanode=1)

    crashes.die(ACTIVE, "scrub.recorded", scrub_now)
    crashes.start(ACTIVE)
    until(lambda: parts.stripes()["scrub"]["hurried"], START_SECONDS, "the order to scrub is forgotten")
    until(lambda: parts.lost_drives() == [crashes.sick.number], START_SECONDS, "one drive is lost")
    _vault(crashes, parts, ACTIVE)
    crashes.kill(ACTIVE)


def _under_load(crashes, parts, happen):
    """Something happens while stripes are written."""
    _until_active(parts, ACTIVE)
    crashes.load.until_progress()
    happen()


def role_points(crashes, parts):
    """The active role moves. Both controllers run before and after."""
    parts.until_whole()
    for name in (ACTIVE, STANDBY):
        parts.change_config(name, lambda text: text.replace(NO_TAKE_OVER, ""))
        parts.kill(name)
        crashes.start(name)
    # The one that is paused holds everything, is active no more when it comes to, and then there is nobody.
    active, standby = parts.active(), parts.standby()
    parts.kill(standby)
    parts.start_part(standby, "role.taken:1")
    parts.until_whole()
    parts.pause(active)
    crashes.until_dead(standby, "role.taken")
    parts.resume(active)
    _until_active(parts, active)
    crashes.start(standby)
    # The same without a death of the other; this one dies when it finds out.
    parts.kill(standby)
    _until_active(parts, active)
    crashes.start(standby)
    parts.kill(active)
    _until_active(parts, standby)
    crashes.start(active)
    check(parts.active() == standby, "the role went back by itself")
    parts.kill(active)
    parts.start_part(active, "role.left:1")
    parts.until_whole()
    parts.kill(standby)
    _until_active(parts, active)
    crashes.start(standby)
    parts.pause(active)
    _until_active(parts, standby)
    parts.resume(active)
    crashes.until_dead(active, "role.left")
    crashes.start(active)


def alone_points(crashes, parts):
    """A controller goes on alone, and its peer comes back. Both run before and after."""

    def standby_alone(point):
        # It takes over from one that is paused, and may have writes on their way; then it goes on alone.
        parts.until_whole()
        active, standby = parts.active(), parts.standby()
        parts.kill(standby)
        parts.start_part(standby, f"{point}:1")
        parts.until_whole()
        crashes.load.until_progress()
        parts.pause(active)
        return active, standby

    for point in ("log.hold.appended", "solo.begun", "solo.filled", "solo.recorded", "solo.appended"):
        active, standby = standby_alone(point)
        crashes.until_dead(standby, point)
        parts.resume(active)
        crashes.start(standby)
    active, standby = standby_alone("log.free-held.appended")
    _until_alone(parts, standby)
    crashes.load.until_progress()
    parts.resume(active)
    crashes.until_dead(standby, "log.free-held.appended")
    crashes.start(standby)
    # The last one that has the log dies, and again while it loads it.
    parts.until_whole()
    active, standby = parts.active(), parts.standby()
    parts.kill(standby)
    _until_alone(parts, active)
    crashes.load.until_progress()
    parts.kill(active)
    crashes.die(active, "solo.loaded")
    parts.start_part(active)
    _until_alone(parts, active)
    crashes.load.until_progress()
    crashes.start(standby)


def _until_alone(parts, name):
    until(
        lambda: parts.is_on_drives(name),
        REACH_SECONDS,
        lambda: f"{name} does not go on alone: {parts.ask(name)}; {parts.tail(name)}",
    )


def _until_active(parts, name):
    until(
        lambda: (parts.ask(name) or {}).get("role") == "active",
        REACH_SECONDS,
        lambda: f"{name} did not become active: {parts.tail(name)}",
    )


def _vault(crashes, parts, name):
    """A controller that is whole dies on the way of its clean stop, and of the start after it."""
    for point in ("vault.pieces", "vault.flushed", "vault.header", "vault.written"):
        crashes.kill(name)
        parts.start_part(name, point)
        parts.until_whole()
        parts.terminate(name)
        crashes.until_dead(name, point)
        crashes.start(name)
    parts.terminate(name)
    parts.until_stopped(name)
    crashes.die(name, "vault.loaded")
    # The image has not been used up.
    crashes.die(name, "mirror.joined")
    crashes.start(name)


def standby_points(crashes, parts):
    """The standby; it is down before and after."""
    for point in (
        "mirror.copy.begun",
        "mirror.copy.taken",
        "mirror.joined",
        "log.received",
        "log.answered",
        "log.released",
        "catalog.applying",
        "catalog.applied",
    ):
        crashes.die(STANDBY, point, nth=20 if point == "log.received" else 1)
    # Its catalog is gone with its disk: the active's is copied.
    for point in ("catalog.restore.begun", "catalog.restore.piece", "catalog.restored"):
        os.remove(os.path.join(parts.dir, STANDBY, "catalog.redb"))
        crashes.die(STANDBY, point)
    crashes.start(STANDBY)
    _vault(crashes, parts, STANDBY)
    crashes.kill(STANDBY)


def store_points(crashes, parts):
    """The store's process; it is down before and after."""

    def restart(name):
        def provoke():
            until(lambda: os.path.exists(os.path.join(parts.dir, "store.sock")), START_SECONDS, "no store")
            crashes.kill(name)
            parts.start_part(name)

        return provoke

    # Transactions of a start: an incarnation, then an epoch of the first vdisk; or the in-sync set.
    for point in ("store.prepared", "store.committed"):
        for name, nth in ((HOST, 1), (HOST, 2), (STANDBY, 1), (STANDBY, 2), (ACTIVE, 2)):
            crashes.die(STORE, point, restart(name), nth)
            crashes.start(STORE)
            crashes.kill(STORE)


def supervised_points(context, say):
    """What `cleave dev` does at creation, at a start and at a stop, each begun again on what is there."""
    tried = []
    cluster = Cluster(context, "d", ["--drives", "3", "--drive-size", "1G", "--log-size", "32M"])
    saved = context.path("saved-d")

    def died(point, nth=1, stop=False):
        os.environ[CRASH_POINT] = f"{point}:{nth}"
        try:
            cluster.launch("--vdisk", "data:64M")
        finally:
            del os.environ[CRASH_POINT]
        if stop:
            cluster.until_ready()
            cluster.process.terminate()
        cluster.process.wait(START_SECONDS)
        check(REACHED.format(point) in cluster.errors(), f"it did not die at {point}: {cluster.errors()}")
        say(f"  cleave dev died at {point}")
        tried.append(point)

    for point in ("marked", "authority", "certificates", "drives"):
        died("dev." + point)
    for point in ("store.prepared", "store.committed"):
        died(point)
    for point in ("records", "settings", "store", "configured"):
        died("dev." + point)
    for nth in (1, 2, 3):
        died("dev.engine.started", nth)
    died("dev.ready")
    cluster.start()
    Verifier(context, cluster, "data", 24 << 20, ["--save", saved]).finish(120)
    cluster.stop()
    for point in ("dev.host.stopped", "dev.stopped", "dev.store", "dev.engine.started", "dev.ready"):
        died(point, stop=point.endswith("stopped"))
        cluster.start()
        Verifier(context, cluster, "data", 2 << 20, ["--load", saved, "--save", saved]).finish(120)
        cluster.stop()
    return tried


def every_point(context, say, guest=True):
    """All of them; how many there are."""
    points = all_points(context)
    parts = Parts(context, arguments=SMALL)
    parts.create("--vdisk", "data:192M", "--vdisk", "guest:64M")
    sick = SickDrive(context, parts, 4)
    for name in (ACTIVE, STANDBY):
        parts.change_config(name, lambda text: NO_TAKE_OVER + text)
    parts.start_all()
    load = Load(context, parts, ["data"], RATE, guest="guest" if guest else None)
    load.until_guest(1)
    crashes = Crashes(parts, load, sick, say)
    for name, dying in (
        (HOST, host_points),
        (STANDBY, standby_points),
        (STORE, store_points),
        (ACTIVE, active_points),
    ):
        crashes.kill(name)
        dying(crashes, parts)
        crashes.start(name)
    role_points(crashes, parts)
    alone_points(crashes, parts)
    figures = load.end()
    parts.stop()
    parts.start_all()
    load.read_again()
    parts.stop()
    tried = crashes.tried + supervised_points(context, say)
    missing = sorted(set(points) - set(tried))
    check(not missing, f"nothing died at {', '.join(missing)}")
    unknown = sorted(set(tried) - set(points))
    check(not unknown, f"these are no crash points: {', '.join(unknown)}")
    return len(points), len(tried), figures

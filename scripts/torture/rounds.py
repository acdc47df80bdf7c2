"""One cluster, tortured wave after wave until its time is over.

What must be so, always: no request of a front end or a guest fails, no content is wrong, no process ends by
itself. After each wave: the cluster is whole again, and every front end goes on. At the end: no stripe lacks more
than what is on drives that were lost, everything is read back, and once more after a clean stop and a start.
"""

import os
import random
import time

from cluster import ENGINES
from framework import check, until

from torture import faults
from torture.drives import SickDrive
from torture.load import Load
from torture.network import Network
from torture.parts import PARTS, Parts

# Overwritten space is not reclaimed yet, so what is written is what the drives must hold.
RATE = 6 << 20
# A new cluster from time to time: its drives fail anew, and its space is free.
ROUND_SECONDS = 420
# Where `cleave dev` puts the host's flash.
FLASH = "flash.img"
NOTICE_SECONDS = 20
DEGRADED_SECONDS = 30
SCRUB_SECONDS = 300


class Field:
    """What faults happen to."""

    def __init__(self, parts, network, sick, load):
        self.parts = parts
        self.network = network
        self.sick = sick
        self.load = load
        self.counts = {}
        # Of faults of the network, by kind: packets that they met, and how long they were, in seconds.
        self.effects = {}
        self.flipped = 0
        # Drives that somebody must notice to be gone.
        self.gone = []
        # The host's flash, a file.
        self.flash = os.path.join(parts.dir, ENGINES[0], FLASH)
        self._flash_size = os.path.getsize(self.flash)

    def replace_flash(self):
        """An operator takes the host's flash out, and puts an empty one in its place."""
        self.parts.cleave("flash", "retire", self.flash)
        if os.path.exists(self.flash):
            os.remove(self.flash)
        self.parts.cleave("flash", "add", self.flash, "--size", str(self._flash_size))

    def count(self, kind):
        """A fault of this kind happened."""
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def meet(self, kind, packets, seconds):
        """A fault of the network is over that met so many packets."""
        met, lasted = self.effects.get(kind, (0, 0.0))
        self.effects[kind] = (met + packets, lasted + seconds)

    def until_lost(self, drive):
        """Waits until the active controller has noticed; then an operator takes it out."""

        def noticed():
            status = self.parts.ask(self.parts.active())
            # While nobody is active nobody can notice.
            return status is None or status["role"] != "active" or any(
                one["drive"] == drive.number and one["state"] == "lost" for one in status["drives"]
            )

        until(noticed, NOTICE_SECONDS, f"nobody noticed that drive {drive.number} is gone")
        drive.take_out()


class Totals:
    """Figures of all rounds."""

    def __init__(self):
        self.faults = {}
        self.effects = {}
        self.load = {}
        self.waves = 0
        self.flipped = 0
        self.slowest = 0.0

    def add(self, field, load):
        """What a round has done."""
        for name, value in field.counts.items():
            self.faults[name] = self.faults.get(name, 0) + value
        for kind, (packets, seconds) in field.effects.items():
            met, lasted = self.effects.get(kind, (0, 0.0))
            self.effects[kind] = (met + packets, lasted + seconds)
        for name, value in load.items():
            self.load[name] = self.load.get(name, 0) + value
        self.flipped += field.flipped

    def lines(self):
        """For people."""
        load = self.load.get
        requests = sum(load(name, 0) for name in ("writes", "reads", "zeroes", "discards", "flushes"))
        yield f"waves {self.waves}, faults {sum(self.faults.values())}, slowest healing {self.slowest:.1f} s"
        for kind in faults.KINDS:
            packets, seconds = self.effects.get(kind, (None, 0))
            met = "" if packets is None else f", met {packets} packets in {seconds:.0f} s"
            yield f"  {kind}: {self.faults.get(kind, 0)}{met}"
        yield f"bits flipped: {self.flipped}"
        yield (
            f"front ends: {requests} operations, {load('written', 0) >> 20} MiB written, "
            f"{load('read', 0) >> 20} MiB read and checked, {load('lost', 0)} in flight when the engine went away, "
            f"{load('reconnects', 0)} times connected again"
        )
        yield f"guests: {load('passes', 0)} passes of fio, all verified"


def run_round(context, seed, seconds, totals, say, guest=True):
    """A cluster of this seed for so long."""
    chance = random.Random(seed)
    drives = chance.choice([6, 12])
    arguments = ["--drives", str(drives), "--drive-size", "6G", "--log-size", chance.choice(["64M", "128M"])]
    # Much less flash than there is content, or more.
    arguments += ["--flash-size", chance.choice(["128M", "2G"])]
    arguments += ["--host-memory", "256M"] + (["--encrypt"] if chance.random() < 0.5 else [])
    vdisks = ["--vdisk", "data:256M", "--vdisk", "guest:64M"]
    network = Network(context, PARTS)
    parts = Parts(context, arguments=arguments, network=network)
    parts.create(*vdisks, shares=[("more", "128M", 4)])
    sick = [SickDrive(context, parts, number) for number in sorted(chance.sample(range(drives), 2))]
    say(
        f"seed {seed}: {' '.join(arguments)}; drives {sick[0].number} and {sick[1].number} are sick; "
        f"a slow link is {' '.join(network.slowness)}"
    )
    parts.start_all()
    load = Load(context, parts, ["data", "more"], RATE, guest="guest" if guest else None, queues=2)
    load.until_guest(1)
    field = Field(parts, network, sick, load)
    losses = chance.sample(faults.LOSSES, 2)
    deck = faults.Deck(chance, losses)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        say(f"wave {totals.waves + 1}")
        faults.wave(field, deck, chance, say)
        healing = parts.until_whole()
        load.until_progress()
        totals.waves += 1
        totals.slowest = max(totals.slowest, healing)
    figures = load.end()
    _check_redundancy(parts, sick)
    parts.stop()
    parts.start_all()
    load.read_again()
    _check_redundancy(parts, sick)
    # What bits were flipped of, and nobody read since, is found and mended.
    say(f"scrub: {parts.cleave('pool', 'scrub', '--now', '--wait', timeout=SCRUB_SECONDS).strip()}")
    again = parts.cleave("pool", "scrub", "--now", "--wait", timeout=SCRUB_SECONDS)
    check("no damage" in again, f"a second scrub finds what the first one did not mend: {again}")
    parts.stop()
    _check_logs(parts)
    totals.add(field, figures)


def _check_redundancy(parts, sick):
    """Both hold the log (`until_whole` saw to that); no stripe is lost, and only lost drives lack shards."""
    lost = sorted(drive.number for drive in sick if drive.lost)
    found = parts.lost_drives()
    check(found == lost, f"drives {found} are lost, not {lost}")

    def whole():
        stripes = parts.stripes()
        return stripes["lost"] == 0 and (lost or stripes["degraded"] == 0)

    until(whole, DEGRADED_SECONDS, lambda: f"stripes lack shards: {parts.stripes()}, lost drives: {lost}")


def _check_logs(parts):
    for name in PARTS:
        with open(parts.log(name), encoding="utf-8", errors="replace") as log:
            text = log.read()
        check(": bug in thread" not in text, f"{name} found a bug of ours: see its log")

"""The kinds of faults, and waves of them, drawn from a seed.

A fault begins, lasts, and ends. Several are under way at a time, but each part is killed or stopped by one at a
time, and no fault begins that redundancy does not cover: the last copy of the log is never killed, and drives
fail only where two may. A wave ends when all its faults have.
"""

import os
import time

from cluster import CONTROLLERS, HOST
from framework import check

from torture.drives import SUPERBLOCKS, SickFlash, flip_bits
from torture.parts import PARTS, STORE

ACTIVE, STANDBY = CONTROLLERS
# Links are given up after three seconds of silence: some faults are shorter, some longer.
SHORT = (0.05, 2.5)
LONG = (3.5, 9.0)
WAVE_FAULTS = (3, 6)
# Faults of a wave begin within this.
BEGIN_SECONDS = 2.5
# What precedes its first zone says whose flash it is: without that an operator has to look.
FLASH_SUPERBLOCKS = 1 << 20
# Engines that are connected say something at least every second or two.
NOTICED_SECONDS = 10
PAIRS = [(HOST, ACTIVE), (HOST, STANDBY), (ACTIVE, STANDBY)]


class Skipped(Exception):
    """Redundancy does not cover it now."""


class Fault:
    """One fault of a kind. `uses`: parts, links and drives that no other fault may touch meanwhile."""

    uses = ()

    def __init__(self, field, random):
        self.field = field
        self.random = random
        self.span = random.uniform(*(LONG if random.random() < 0.4 else SHORT))

    def begin(self):
        """Makes it happen."""
        raise NotImplementedError

    def end(self):
        """Undoes it."""

    def __str__(self):
        return f"{self.kind} {' '.join(str(use) for use in self.uses)} for {self.span:.1f} s"


class Kill(Fault):
    """SIGKILL, and a start after a while."""

    def __init__(self, field, random, name):
        super().__init__(field, random)
        self.name = name
        self.uses = (name,)

    def begin(self):
        parts = self.field.parts
        if self.name in CONTROLLERS and not parts.may_lose(self.name):
            raise Skipped
        parts.kill(self.name)

    def end(self):
        self.field.parts.start_part(self.name)


class KillHost(Kill):
    """The host engine."""

    kind = "kill of the host engine"

    def __init__(self, field, random):
        super().__init__(field, random, HOST)

    def begin(self):
        if not self.field.load.is_attached():
            raise Skipped
        super().begin()


class KillActive(Kill):
    """The active controller."""

    kind = "kill of the active controller"

    def __init__(self, field, random):
        super().__init__(field, random, field.parts.active())


class KillStandby(Kill):
    """The standby."""

    kind = "kill of the standby"

    def __init__(self, field, random):
        super().__init__(field, random, field.parts.standby())


class KillStore(Kill):
    """The process that owns the coordinator store."""

    kind = "kill of the store"

    def __init__(self, field, random):
        super().__init__(field, random, STORE)


class Pause(Fault):
    """SIGSTOP, and SIGCONT after a while."""

    kind = "pause of a process"

    def __init__(self, field, random):
        super().__init__(field, random)
        self.uses = (random.choice(PARTS),)

    def begin(self):
        self.field.parts.pause(*self.uses)

    def end(self):
        self.field.parts.resume(*self.uses)


class Restart(Fault):
    """A clean stop of the host engine, and a start."""

    kind = "clean restart of the host engine"
    uses = (HOST,)

    def begin(self):
        if not self.field.load.is_attached():
            raise Skipped
        self.field.parts.terminate(HOST)

    def end(self):
        self.field.parts.until_stopped(HOST)
        self.field.parts.start_part(HOST)


class StopControllers(Fault):
    """A clean stop of both controllers: the log goes to the vaults."""

    kind = "clean stop of both controllers"
    uses = (ACTIVE, STANDBY)

    def begin(self):
        parts = self.field.parts
        if not all(parts.may_lose(name) for name in CONTROLLERS):
            raise Skipped
        for name in CONTROLLERS:
            parts.terminate(name)

    def end(self):
        for name in CONTROLLERS:
            self.field.parts.until_stopped(name)
        for name in CONTROLLERS:
            self.field.parts.start_part(name)


class Cut(Fault):
    """Nothing arrives, in one direction or in both."""

    percent = 100
    ways = 1

    def __init__(self, field, random):
        super().__init__(field, random)
        pair = list(random.choice(PAIRS))
        random.shuffle(pair)
        self._cut = [tuple(pair), tuple(reversed(pair))][: self.ways]
        self.uses = tuple(f"{source}->{at}" for at, source in self._cut)

    def begin(self):
        for at, source in self._cut:
            self.field.network.drop(at, source, self.percent)

    def end(self):
        for at, source in self._cut:
            self.field.meet(self.kind, self.field.network.undrop(at, source), self.span)


class CutOneWay(Cut):
    """One does not hear the other."""

    kind = "partition in one direction"


class CutBothWays(Cut):
    """Neither hears the other."""

    kind = "partition in both directions"
    ways = 2


class Loss(Cut):
    """Some packets do not arrive."""

    kind = "loss of packets"
    ways = 2

    def __init__(self, field, random):
        super().__init__(field, random)
        self.percent = random.randint(3, 40)


class Slow(Fault):
    """Everything that a part sends arrives late."""

    kind = "slow link"

    def __init__(self, field, random):
        super().__init__(field, random)
        self._name = random.choice([HOST, ACTIVE, STANDBY])
        self.uses = (f"{self._name}->",)

    def begin(self):
        self.field.network.slow(self._name)

    def end(self):
        self.field.meet(self.kind, self.field.network.unslow(self._name), self.span)


class DriveFault(Fault):
    """Something happens to one of the two sick drives."""

    def __init__(self, field, random):
        super().__init__(field, random)
        left = [drive for drive in field.sick if not drive.lost]
        self.drive = random.choice(left) if left else None
        self.uses = (f"drive {self.drive.number if left else 'none'}",)

    def begin(self):
        if self.drive is None or self.drive.lost:
            raise Skipped
        self.happen()

    def happen(self):
        """What happens."""
        raise NotImplementedError


class FlipBits(DriveFault):
    """Pages of the medium change."""

    kind = "flipped bits on a drive"

    def happen(self):
        for _ in range(self.random.randint(1, 200)):
            self.field.flipped += flip_bits(self.drive.path, self.random, SUPERBLOCKS)


class FlipFlash(Fault):
    """Pages of the host's flash change, header pages too: it is a cache, and checked on every read."""

    kind = "flipped bits in flash"
    uses = ("flash",)

    def begin(self):
        for _ in range(self.random.randint(1, 200)):
            self.field.flipped += flip_bits(self.field.flash, self.random, FLASH_SUPERBLOCKS)


class FlashFault(Fault):
    """Something happens to the host's flash while it is used; then an operator takes it out, and gives the host another
    one. The engine lives meanwhile, so that it is the engine that meets it."""

    # The operator's commands go through the process of the store.
    uses = (HOST, STORE, "flash")

    def begin(self):
        if self.field.parts.ask(HOST) is None:
            raise Skipped
        self.happen(self.field.flash)

    def happen(self, path):
        """What happens."""
        raise NotImplementedError

    def end(self):
        self.field.replace_flash()


class TruncatedFlash(FlashFault):
    """It shrinks."""

    kind = "truncated flash"

    def happen(self, path):
        os.truncate(path, os.path.getsize(path) // 2)


class UnlinkedFlash(FlashFault):
    """Its file is removed."""

    kind = "unlinked flash"

    def happen(self, path):
        os.remove(path)


class DeadFlash(FlashFault):
    """There is a second device, and every request to it fails."""

    kind = "dead flash"

    def __init__(self, field, random):
        super().__init__(field, random)
        self._second = None

    def happen(self, path):
        self._second = SickFlash(self.field.parts)
        self._second.die()

    def end(self):
        self._second.take_out()


class EmptyFlash(Kill):
    """SIGKILL of the host engine; its successor finds empty flash."""

    kind = "restart with empty flash"

    def __init__(self, field, random):
        super().__init__(field, random, HOST)
        self.uses = (HOST, "flash")

    def begin(self):
        if not self.field.load.is_attached():
            raise Skipped
        super().begin()

    def end(self):
        size = os.path.getsize(self.field.flash)
        os.remove(self.field.flash)
        with open(self.field.flash, "wb") as file:
            file.truncate(size)
        super().end()


class ChangeCores(Fault):
    """The host engine runs on another number of cores: vdisks move."""

    kind = "change of the number of cores"
    uses = (HOST,)

    def begin(self):
        cores = self.random.choice(["1", "2"])
        if self.field.parts.ask(HOST) is None or not self.field.parts.set_cores(cores):
            raise Skipped


class FullDrive(DriveFault):
    """There is no space behind the drive for a while."""

    kind = "full drive"

    def happen(self):
        self.drive.fill()

    def end(self):
        self.drive.empty()


class LostDrive(DriveFault):
    """A drive is gone for good; once the wave is over its owner notices, and an operator takes it out."""

    def end(self):
        # Not yet: other faults of the wave may keep every request away from the drive.
        self.field.gone.append(self.drive)


class ReadOnlyDrive(LostDrive):
    """Its file system turned read-only, as after an error: what is there can be read."""

    kind = "read-only drive"

    def happen(self):
        self.drive.turn_read_only()


class UnlinkedDrive(LostDrive):
    """Its file is removed."""

    kind = "unlinked drive"

    def happen(self):
        self.drive.unlink()


class TruncatedDrive(LostDrive):
    """It shrinks."""

    kind = "truncated drive"

    def happen(self):
        self.drive.truncate()


class DeadDrive(LostDrive):
    """Every request to it fails."""

    kind = "dead drive"

    def happen(self):
        self.drive.die()


ALWAYS = [
    KillHost,
    KillActive,
    KillStandby,
    KillStore,
    Pause,
    Pause,
    Restart,
    StopControllers,
    CutOneWay,
    CutBothWays,
    Loss,
    Slow,
    FlipBits,
    FlipFlash,
    TruncatedFlash,
    UnlinkedFlash,
    DeadFlash,
    EmptyFlash,
    ChangeCores,
    ChangeCores,
    FullDrive,
]
# Two of these a cluster, at most.
LOSSES = [UnlinkedDrive, TruncatedDrive, DeadDrive, ReadOnlyDrive]
KINDS = list(dict.fromkeys(kind.kind for kind in ALWAYS + LOSSES))


class Deck:
    """Kinds in an order drawn from the seed, each once before any comes again."""

    def __init__(self, random, losses):
        self._random = random
        self._losses = list(losses)
        self._left = []

    def draw(self):
        """The next kind."""
        if not self._left:
            self._left = list(ALWAYS)
            self._random.shuffle(self._left)
            # A loss is in every second time through, so that drives are sick for a while before.
            if self._losses:
                self._left.insert(self._random.randrange(len(self._left) // 2), self._losses.pop())
        return self._left.pop()


def wave(field, deck, random, say):
    """Draws some faults and lets them happen at the same time; counts each one that happened."""
    due = []
    used = set()
    for _ in range(random.randint(*WAVE_FAULTS)):
        fault = deck.draw()(field, random)
        if used.isdisjoint(fault.uses):
            used.update(fault.uses)
            due.append((random.uniform(0, BEGIN_SECONDS), fault))
    due.sort(key=lambda one: one[0])
    begin = time.monotonic()
    under_way = []
    while due or under_way:
        now = time.monotonic() - begin
        if due and due[0][0] <= now:
            _, fault = due.pop(0)
            try:
                fault.begin()
            except Skipped:
                continue
            say(f"  {now:5.1f} s  {fault}")
            field.count(fault.kind)
            under_way.append((now + fault.span, fault))
            continue
        for one in [one for one in under_way if one[0] <= now]:
            under_way.remove(one)
            one[1].end()
        down = {use for _, fault in under_way for use in fault.uses}
        field.parts.check_running([name for name in PARTS if name not in down])
        field.load.check()
        time.sleep(0.02)
    while field.gone:
        field.until_lost(field.gone.pop())


def check_effects(effects):
    """A fault of the network that no packet met in all its time was none."""
    idle = [kind for kind, (packets, seconds) in effects.items() if seconds >= NOTICED_SECONDS and packets == 0]
    check(not idle, f"these faults met no packet: {', '.join(idle)}")


def check_kinds(counts):
    """After a long run: a kind that never happened was not tested."""
    missing = [kind for kind in KINDS if not counts.get(kind)]
    check(not missing, f"these kinds of faults never happened: {', '.join(missing)}")

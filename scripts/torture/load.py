"""What uses the cluster all the time: front ends that check every byte, and a guest whose fio does."""

import os
import re

from cluster import HOST
from framework import Failure, check, until
from guest import Disk, Guest, GuestError
from guests import FIO_PASSES, programs
from verifier import Verifier

# What is checked at the end takes its time under load.
END_SECONDS = 300
BOOT_SECONDS = 240
PROGRESS_SECONDS = 90


class Load:
    """Front ends on some vdisks, and a guest on another one."""

    def __init__(self, context, parts, vdisks, rate, guest=None, queues=1):
        self._context = context
        self._parts = parts
        self._saved = {vdisk: context.path(f"saved-{vdisk}") for vdisk in vdisks}
        arguments = ["--rate", str(rate // max(1, len(vdisks)))]
        # Only one queue keeps an order that can be checked.
        self.verifiers = {
            vdisk: Verifier(
                context,
                parts,
                vdisk,
                1 << 50,
                arguments + ["--queues", str(queues if number else 1), "--save", self._saved[vdisk]],
                until_told=True,
            )
            for number, vdisk in enumerate(vdisks)
        }
        self._vdisk = guest
        self._guest = None if guest is None else self._boot(guest)

    def _boot(self, vdisk):
        guest = Guest(
            FIO_PASSES,
            disks=[Disk(self._parts.socket(vdisk))],
            programs=programs("fio"),
            processors=1,
        )
        guest.__enter__()
        self._context.at_end(lambda: guest.__exit__(None, None, None))
        guest.start()
        return guest

    def check(self):
        """Fails when a front end or the guest has found something, or has ended."""
        for vdisk, verifier in self.verifiers.items():
            check(verifier.is_running(), lambda v=verifier, d=vdisk: f"on {d}: {v.output()[-2000:]}")
        if self._guest is not None:
            check(self._guest.is_running(), lambda: f"the guest ended: {self._guest.output()[-3000:]}")

    def until_progress(self):
        """Waits until every front end has written more."""
        before = {vdisk: verifier.written() for vdisk, verifier in self.verifiers.items()}

        def more():
            self.check()
            return all(self.verifiers[vdisk].written() > written for vdisk, written in before.items())

        until(more, PROGRESS_SECONDS, "a front end does not go on although the cluster is whole")

    def is_attached(self):
        """Whether the guest has its queues set up. QEMU 7.2 never connects again when the engine goes away under the
        first message of a connection, which no engine can help."""
        if self._guest is None:
            return True
        host = self._parts.ask(HOST)
        vdisks = host["vdisks"] if host else []
        return any(vdisk["name"] == self._vdisk and vdisk["queues"] > 0 for vdisk in vdisks)

    def until_attached(self):
        """Waits until the guest has its queues set up."""
        until(self.is_attached, PROGRESS_SECONDS, "the guest does not connect again")

    def pause_guest(self):
        """The guest sleeps."""
        if self._guest is not None:
            self._guest.pause()

    def resume_guest(self):
        """And wakes."""
        if self._guest is not None:
            self._guest.resume()

    def until_guest_goes_on(self):
        """Waits until the guest has verified once more what it wrote after now."""
        self.until_guest(self.passes() + 2)

    def until_guest(self, passes):
        """Waits until the guest has verified so often."""
        if self._guest is None:
            return
        text = f"pass {passes} done"

        def enough():
            self.check()
            return text in self._guest.output()

        until(enough, BOOT_SECONDS, lambda: f"the guest did not say {text!r}: {self._guest.output()[-2000:]}")

    def passes(self):
        """How often the guest has verified all it wrote."""
        if self._guest is None:
            return 0
        return len(re.findall(r"^pass \d+ done", self._guest.output(), re.MULTILINE))

    def end(self):
        """Ends everything; all content is read once more. The sums of all figures."""
        if self._guest is not None:
            try:
                self._guest.tell("stop")
                status = self._guest.wait(END_SECONDS)
            except GuestError as error:
                raise Failure(str(error)) from None
            output = self._guest.output()
            with open(self._context.path("guest.log"), "w", encoding="utf-8") as file:
                file.write(output)
            check(status == 0, f"the command in the guest ended with {status}: {output[-3000:]}")
        for verifier in self.verifiers.values():
            verifier.end_writing()
        sums = {}
        for verifier in self.verifiers.values():
            for name, value in verifier.finish(END_SECONDS).items():
                sums[name] = sums.get(name, 0) + value
        sums["passes"] = self.passes()
        return sums

    def read_again(self):
        """Checks everything that the front ends have left."""
        for vdisk, saved in self._saved.items():
            check(os.path.exists(saved), f"{saved} was not saved")
            arguments = ["--load", saved]
            Verifier(self._context, self._parts, vdisk, 0, arguments).finish(END_SECONDS)

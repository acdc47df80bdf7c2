"""A cluster whose processes are started here one by one: each in its network namespace, each with the
crash point that a test wants it to die at, and each killed, stopped and continued at any time.

`cleave dev` makes the cluster. Then `cleave dev --no-engines` serves the store, and each engine runs by its
own configuration, in which the addresses are those of its namespace.
"""

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import time

from cluster import CONTROLLERS, ENGINES, HOST, Cluster
from framework import Failure, check, until

STORE = "store"
PARTS = [STORE] + ENGINES
CRASH_POINT = "CLEAVE_CRASH_POINT"
# A clean stop may write a vault, and waits for requests in flight.
STOP_SECONDS = 60
WHOLE_SECONDS = 90
PORT = 7000
# What an Ethernet link carries: the configurations of `cleave dev` are for loopback.
MTU = 1452
PR_SET_PDEATHSIG = 1


class Parts(Cluster):
    """A cluster in parts. `network`: where its engines run; without one they use loopback."""

    def __init__(self, context, name="c", arguments=(), network=None):
        super().__init__(context, name, arguments)
        self.network = network
        self._processes = {}
        # Those that were stopped by a signal.
        self.paused = set()
        # Controllers that hold the whole log in memory as members of the in-sync set, as far as is known.
        self._hold = dict.fromkeys(CONTROLLERS, False)
        # Controllers that were alone when they were last looked at: what they acknowledged is on drives.
        self._on_drives = set()

    def create(self, *arguments, shares=()):
        """Makes the cluster, with vdisks of several `shares` (name, size, how many), and gives its engines their addresses.
        Nothing runs afterwards."""
        self.start(*arguments)
        for name, size, count in shares:
            self.cleave("vdisk", "create", name, size, "--shares", str(count))
        Cluster.stop(self)
        self.process = None
        self._place()

    def _config(self, name):
        return os.path.join(self.dir, "run", name + ".toml")

    def change_config(self, name, change):
        """Rewrites an engine's configuration by a function of its text."""
        with open(self._config(name), encoding="utf-8") as file:
            text = file.read()
        with open(self._config(name), "w", encoding="utf-8") as file:
            file.write(change(text))

    def _place(self):
        if self.network is None:
            return
        moved = {}
        for name in ENGINES:
            with open(self._config(name), encoding="utf-8") as file:
                found = re.search(r'^listen = "(.*)"$', file.read(), re.MULTILINE)
            moved[found[1]] = f"{self.network.address(name)}:{PORT}"

        def change(text):
            for before, after in moved.items():
                text = text.replace(f'"{before}"', f'"{after}"')
            return re.sub(r"^mtu = \d+$", f"mtu = {MTU}", text, flags=re.MULTILINE)

        for name in ENGINES:
            self.change_config(name, change)

    # Processes.

    def start_part(self, name, crash_point=None):
        """Starts a part; with a crash point it dies there."""
        check(not self.is_running(name), f"{name} runs already")
        if name == STORE:
            line = self.command("dev", "--no-engines")
        else:
            program = "cleave-host" if name == HOST else "cleave-datanode"
            line = [self.context.options.program(program), "--config", self._config(name)]
        if self.network is not None:
            line = self.network.inside(name, line)
        environment = {key: value for key, value in os.environ.items() if key != CRASH_POINT}
        if crash_point is not None:
            environment[CRASH_POINT] = crash_point
        with open(self.log(name), "ab") as log:
            self._processes[name] = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                preexec_fn=_end_with_parent,
            )

    def log(self, name):
        """What a part says."""
        return os.path.join(self.dir, "log", name + ".log")

    def start_all(self):
        """Starts everything and waits until it is whole."""
        for name in PARTS:
            self.start_part(name)
        self.until_whole()

    def is_running(self, name):
        """Whether a part's process has not ended."""
        process = self._processes.get(name)
        return process is not None and process.poll() is None

    def pid(self, name):
        """The process of a part that runs."""
        check(self.is_running(name), f"{name} does not run")
        return self._processes[name].pid

    def check_running(self, names=None):
        """Fails when a part ended that nobody has ended."""
        for name in PARTS if names is None else names:
            check(self.is_running(name), lambda name=name: self._obituary(name))

    def _obituary(self, name):
        return f"{name} ended with {self._processes[name].poll()} by itself; the end of its log: {self.tail(name)}"

    def tail(self, name, lines=5):
        """The last that a part has said."""
        with open(self.log(name), encoding="utf-8", errors="replace") as log:
            return "\n".join(log.read().splitlines()[-lines:])

    def is_on_drives(self, name):
        """Whether a controller is alone, and what it acknowledged is on drives."""
        status = self.ask(name)
        if status is not None and status["log"]["alone_on"]:
            self._on_drives.add(name)
        return name in self._on_drives

    def may_lose(self, name):
        """Whether what this controller has in memory may be lost: the other one has all of it, or drives."""
        other = next(one for one in CONTROLLERS if one != name)
        if self.is_on_drives(name):
            return True
        # A stopped process keeps what it had. Others may have given it up for a copy.
        if self._hold[other] and other not in self.paused:
            status = self.ask(other)
            self._hold[other] = status is not None and status["in_sync"]
        return self._hold[other]

    def kill(self, name):
        """SIGKILL, whatever it is doing, stopped or not. Never the last copy of the log."""
        if name in CONTROLLERS:
            check(self.may_lose(name), f"the other controller does not hold what {name} has")
            self._hold[name] = False
        self._processes[name].kill()
        self._processes[name].wait()

    def until_dead(self, name, seconds, otherwise):
        """Waits until a part has died of SIGKILL by itself."""
        if name in CONTROLLERS:
            check(self.may_lose(name), f"the other controller does not hold what {name} has")
            self._hold[name] = False
        until(lambda: not self.is_running(name), seconds, otherwise)
        status = self._processes[name].returncode
        check(status == -signal.SIGKILL, lambda: self._obituary(name))

    def send(self, name, number):
        """Sends a signal."""
        self._processes[name].send_signal(number)

    def pause(self, name):
        """SIGSTOP."""
        self.paused.add(name)
        self.send(name, signal.SIGSTOP)

    def resume(self, name):
        """SIGCONT."""
        self.send(name, signal.SIGCONT)
        self.paused.discard(name)

    def terminate(self, name):
        """Asks for a clean stop. What a controller's memory holds is in its vault once it has ended."""
        if name in CONTROLLERS:
            self._hold[name] = False
        self.send(name, signal.SIGTERM)

    def until_stopped(self, name):
        """Waits for the end of a clean stop."""
        try:
            status = self._processes[name].wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            tail = self.tail(name)
            raise Failure(f"{name} did not stop within {STOP_SECONDS} s: {tail}") from None
        check(status == 0, f"{name} ended with {status}: {self.tail(name)}")

    def stop(self, with_signal=signal.SIGTERM):
        """Stops everything cleanly, in order: the host engine, both controllers, the store."""
        for names in ([HOST], CONTROLLERS, [STORE]):
            for name in names:
                self.terminate(name)
            for name in names:
                self.until_stopped(name)

    def destroy(self):
        """Ends whatever is left, at once."""
        super().destroy()
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    # How it is.

    def ask(self, name, request="status", **fields):
        """What an engine answers on its own control socket; `None` when it does not."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(2)
                connection.connect(os.path.join(self.dir, "run", name + ".sock"))
                connection.sendall(json.dumps({"request": request, **fields}).encode() + b"\n")
                with connection.makefile(encoding="utf-8") as answer:
                    return json.loads(answer.readline()).get("ok")
        except (OSError, ValueError):
            return None

    def active(self):
        """The controller that is active, or the first one while none says so."""
        first, second = CONTROLLERS
        return second if (self.ask(second) or {}).get("role") == "active" else first

    def standby(self):
        """The other one."""
        return next(name for name in CONTROLLERS if name != self.active())

    def missing(self):
        """What keeps the cluster from being whole, by what its engines say; empty when nothing does."""
        missing = []
        for name, role in ((self.active(), "active"), (self.standby(), "standby")):
            status = self.ask(name)
            if status is None:
                missing.append(f"{name} does not answer")
                continue
            # It was made a member by the record, and has the log.
            self._hold[name] |= status["in_sync"]
            for good, what in (
                (status["in_sync"], "has no copy of the log"),
                (status["role"] == role, f"has the role {status['role']}"),
                (status["peer_connected"], "has no connection to its peer"),
                (status["store_connected"], "has no connection to the store"),
            ):
                if not good:
                    missing.append(f"{name} {what}")
        host = self.ask(HOST)
        if host is None:
            return missing + [f"{HOST} does not answer"]
        if not host["store_connected"]:
            missing.append(f"{HOST} has no connection to the store")
        missing += [f"{HOST} cannot write to the log" for log in host["logs"] if not log["writable"]]
        if host["cpu"]["changing"]:
            missing.append(f"{HOST} changes its cores")
        for vdisk in host["vdisks"]:
            if vdisk["state"] != "serving":
                missing.append(f"vdisk {vdisk['name']} is {vdisk['state']}")
        if not missing:
            self._on_drives.clear()
        return missing or ([] if host["vdisks"] else ["no vdisk is served"])

    def set_cores(self, cores):
        """The host engine is to run on so many cores; false when it did not hear it. It takes its time."""
        return self.ask(HOST, "set_cpu", cores=int(cores)) is not None

    def until_whole(self, seconds=WHOLE_SECONDS):
        """Waits until every part runs and both controllers hold the log; how long that took."""
        begin = time.monotonic()

        def whole():
            self.check_running()
            return not self.missing()

        until(whole, seconds, lambda: f"the cluster is not whole: {'; '.join(self.missing())}")
        return time.monotonic() - begin

    def stripes(self):
        """The active controller's count of stripes."""
        return self.ask(self.active())["stripes"]

    def lost_drives(self):
        """Numbers of the drives that the active controller does not use any more."""
        drives = self.ask(self.active())["drives"]
        return sorted(drive["drive"] for drive in drives if drive["state"] != "online")


def _end_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

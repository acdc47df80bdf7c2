"""One `cleave dev` in a scenario's folder, and what a test does to it."""

import json
import os
import re
import signal
import subprocess

from framework import Failure, check, until

HOST = "host-1"
CONTROLLERS = ["datanode-1-a", "datanode-1-b"]
ENGINES = [HOST] + CONTROLLERS

# Issue: ready within 30 s. The rest is for a machine that is busy with other things too.
READY_SECONDS = 45
STOP_SECONDS = 150


class Cluster:
    """A cluster that is started and stopped, also several times, over the same directory."""

    def __init__(self, context, name="c", arguments=()):
        self.context = context
        self.dir = context.path(name)
        self.arguments = list(arguments)
        self.process = None
        self._starts = 0
        context.at_end(self.destroy)

    def command(self, *arguments):
        """The line that starts `cleave` with these arguments on this cluster."""
        return [self.context.options.program("cleave"), "--dir", self.dir, *arguments]

    def start(self, *arguments):
        """Starts it and waits until it is ready."""
        self.launch(*arguments)
        self.until_ready()
        return self

    def launch(self, *arguments):
        """Starts it without waiting."""
        self._starts += 1
        self._output = self.context.path(f"{os.path.basename(self.dir)}-{self._starts}.out")
        errors = self.context.path(f"{os.path.basename(self.dir)}-{self._starts}.log")
        self._errors = errors
        with open(self._output, "wb") as output, open(errors, "wb") as errors_file:
            self.process = subprocess.Popen(
                self.command("dev", *self.arguments, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors_file,
            )

    def until_ready(self):
        """Waits for the line `ready`."""

        def ready():
            if self.process.poll() is not None:
                raise Failure(f"cleave dev ended with {self.process.returncode}: {self.errors()}")
            return "ready" in _text(self._output).splitlines()

        until(ready, READY_SECONDS, "cleave dev did not say ready")

    def errors(self):
        """What it has said on standard error since it was started."""
        return _text(self._errors)

    def refused(self, *arguments):
        """A start that must fail: exactly one line on standard error, which is returned."""
        done = subprocess.run(
            self.command("dev", *self.arguments, *arguments),
            capture_output=True,
            text=True,
            timeout=READY_SECONDS,
            check=False,
        )
        check(done.returncode not in (0, 101), f"it ended with {done.returncode}: {done.stderr}")
        check(done.stdout == "", f"it said {done.stdout!r}")
        return one_line(done.stderr)

    def cleave(self, *arguments, timeout=200):
        """Runs a command that must succeed; its output."""
        done = self._run(arguments, timeout)
        check(done.returncode == 0, f"cleave {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def cleave_fails(self, *arguments, timeout=200):
        """Runs a command that must fail; its one line."""
        done = self._run(arguments, timeout)
        check(done.returncode == 1, f"cleave {' '.join(arguments)} ended with {done.returncode}")
        return one_line(done.stderr)

    def _run(self, arguments, timeout):
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=timeout, check=False
        )

    def status(self):
        """`cleave status --json`."""
        return json.loads(self.cleave("status", "--json"))

    def stats(self):
        """`cleave stats --json`."""
        return json.loads(self.cleave("stats", "--json"))

    def processes(self):
        """The status of each child's process, by name."""
        status = self.status()
        parts = status["hosts"] + status["controllers"]
        if status["store"]["process"]:
            parts.append(status["store"])
        return {part["process"]["name"]: part["process"] for part in parts}

    def pid(self, name):
        """The process of an engine that runs."""
        pid = self.processes()[name]["pid"]
        check(pid is not None, f"{name} does not run")
        return pid

    def kill(self, name):
        """SIGKILL, and waits until the supervisor knows."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        until(lambda: self.processes()[name]["pid"] != pid, 10, f"{name} did not end")

    def restart(self, name):
        """Starts an engine again and waits until everything is ready."""
        self.cleave("restart", name)
        self.until_status_ready()

    def until_status_ready(self, seconds=60):
        """Waits until status says ready."""

        def why():
            status = self.status()
            return f"status does not say ready: {status['warnings']}"

        until(lambda: self.status()["ready"], seconds, why)

    def controller(self, name):
        """What status says of a controller; `None` when it is down."""
        one = next(one for one in self.status()["controllers"] if one["process"]["name"] == name)
        return one if one["process"]["state"] == "running" else None

    def until_role(self, name, role):
        """Waits until a controller has a role."""

        def found():
            return (self.controller(name) or {}).get("role")

        until(lambda: found() == role, 60, lambda: f"{name} has the role {found()}, not {role}")

    def until_drives_lost(self, *numbers):
        """Waits until status names exactly these drives as lost. Their owner looks every second."""

        def named():
            warnings = self.status()["warnings"]
            found = [re.match(r"drive (\d+) is lost", warning) for warning in warnings]
            return [int(one[1]) for one in found if one] == sorted(numbers)

        until(named, 10, lambda: f"not just drives {numbers} are lost: {self.status()['warnings']}")

    def socket(self, vdisk, host=1):
        """Where a vdisk is served by a host."""
        folder = ["vhost"] if host == 1 else ["vhost", f"host-{host}"]
        return os.path.join(self.dir, *folder, vdisk + ".sock")

    def drive(self, number):
        """A drive's file."""
        return os.path.join(self.dir, "drives", f"drive-{number:03d}.img")

    def stop(self, with_signal=signal.SIGTERM):
        """A clean stop: exit status 0, and no engine is left."""
        pids = [process["pid"] for process in self.processes().values() if process["pid"]]
        self.process.send_signal(with_signal)
        status = self._wait(STOP_SECONDS)
        check(status == 0, f"cleave dev ended with {status}: {self.errors()}")
        for pid in pids:
            check(not _exists(pid), f"process {pid} is left behind")

    def kill_supervisor(self):
        """SIGKILL to the supervisor; waits until its children have ended by themselves."""
        pids = [process["pid"] for process in self.processes().values() if process["pid"]]
        self.process.kill()
        self.process.wait()
        for pid in pids:
            until(lambda pid=pid: not _exists(pid), STOP_SECONDS, f"process {pid} stays")

    def destroy(self):
        """Ends whatever is left, at once."""
        if self.process is None or self.process.poll() is not None:
            return
        try:
            pids = [process["pid"] for process in self.processes().values() if process["pid"]]
        except (Failure, subprocess.TimeoutExpired):
            pids = []
        for pid in pids:
            _kill(pid)
        self.process.kill()
        self.process.wait()

    def _wait(self, seconds):
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"cleave dev did not stop within {seconds} s: {self.errors()}") from None


def one_line(text):
    """The text, which must be one line that a person understands."""
    lines = text.splitlines()
    check(len(lines) == 1 and lines[0].strip(), f"expected one line, got {text!r}")
    check("panicked" not in text, f"it panicked: {text}")
    return lines[0]


def memory_of(pid):
    """Bytes that the process has for itself: without what it maps of guests and of files."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        found = re.search(r"^RssAnon:\s+(\d+) kB", file.read(), re.MULTILINE)
    return int(found[1]) << 10


def _text(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _exists(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            # A zombie has ended; whose child it is will collect it.
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass

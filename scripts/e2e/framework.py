"""Scenarios: functions that are given a folder and raise when something is not as it should be.

A scenario's folder goes away when it passes. When it fails, the folder stays, and the ends of all
logs in it are shown. Every process that a scenario starts ends with it.
"""

import os
import shutil
import sys
import tempfile
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TARGET = os.path.join(ROOT, "target", "e2e")
# The path of a socket may have 107 bytes; scenarios need some of them for themselves.
FOLDER_LENGTH_MAX = 60
LOG_LINES_SHOWN = 25

SCENARIOS = []


class Failure(Exception):
    """Something is not as it should be."""


class Options:
    """How scenarios are run: where the programs are, how much to write."""

    def __init__(self, programs, write, seed):
        self.programs = programs
        self.write = write
        self.seed = seed

    def program(self, name):
        """The path of a program."""
        return os.path.join(self.programs, name)


class Context:
    """What a scenario is given."""

    def __init__(self, folder, options):
        self.folder = folder
        self.options = options
        self._cleanups = []

    def at_end(self, function):
        """Calls the function when the scenario has ended, last ones first."""
        self._cleanups.append(function)

    def path(self, name):
        """A path in the scenario's folder."""
        return os.path.join(self.folder, name)

    def clean(self):
        """Calls what was registered."""
        while self._cleanups:
            self._cleanups.pop()()


def scenario(function):
    """Registers a scenario; its documentation's first line says what it shows."""
    SCENARIOS.append(function)
    return function


def on_demand(function):
    """As `scenario`, for one that takes long or needs much: only run when `--only` names it in full."""
    function.on_demand = True
    return scenario(function)


def check(condition, message):
    """Fails with the message, or what it gives when called, unless the condition holds."""
    if not condition:
        raise Failure(message() if callable(message) else message)


def until(condition, seconds, otherwise):
    """Waits until the condition gives something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failure(f"{otherwise() if callable(otherwise) else otherwise} ({seconds} s)")
        time.sleep(0.05)


def run_all(scenarios, options):
    """Runs scenarios; `(passed, failed)`. Prints a line for each, and what is known of failures."""
    os.makedirs(TARGET, exist_ok=True)
    base = TARGET if len(TARGET) <= FOLDER_LENGTH_MAX else tempfile.gettempdir()
    failed = []
    for function in scenarios:
        name = function.__name__
        folder = tempfile.mkdtemp(prefix="s-", dir=base)
        context = Context(folder, options)
        start = time.monotonic()
        error = None
        try:
            try:
                function(context)
            finally:
                context.clean()
        except Failure as failure:
            error = str(failure)
        except Exception:  # pylint: disable=broad-except
            error = traceback.format_exc().rstrip()
        seconds = time.monotonic() - start
        if error is None:
            shutil.rmtree(folder)
            print(f"e2e {name} ... ok ({seconds:.0f} s)", flush=True)
        else:
            failed.append(name)
            print(f"e2e {name} ... FAILED ({seconds:.0f} s)\n{error}", flush=True)
            show_logs(folder)
            print(f"its files are in {folder}", flush=True)
    return len(scenarios) - len(failed), failed


def show_logs(folder):
    """Prints the ends of all logs below the folder."""
    for where, _, files in sorted(os.walk(folder)):
        for file in sorted(files):
            if not file.endswith(".log"):
                continue
            path = os.path.join(where, file)
            with open(path, encoding="utf-8", errors="replace") as log:
                lines = log.read().splitlines()[-LOG_LINES_SHOWN:]
            print(f"--- the end of {os.path.relpath(path, folder)}")
            print("\n".join(lines))
    sys.stdout.flush()

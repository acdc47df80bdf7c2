"""One `cleave-verify`: random requests with every content checked, also while engines are killed."""

import os
import re
import subprocess

from framework import Failure, check, until


class Verifier:
    """A run over one vdisk. `until_told`: it writes until `end_writing`, if that is sooner."""

    def __init__(self, context, cluster, vdisk, write, arguments=(), until_told=False):
        self.context = context
        seed = str(context.options.seed)
        line = [context.options.program("cleave-verify"), "--socket", cluster.socket(vdisk)]
        line += ["--bytes", str(write), "--seed", seed, *arguments]
        if until_told and "--probe" not in line:
            line.append("--until-input-ends")
        number = len([name for name in _files(context) if name.startswith("verify-")])
        self._output = context.path(f"verify-{number}.log")
        with open(self._output, "wb") as output:
            self._process = subprocess.Popen(
                line,
                stdin=subprocess.PIPE if until_told else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        context.at_end(self._end)

    def output(self):
        """What it has said so far."""
        with open(self._output, encoding="utf-8", errors="replace") as file:
            return file.read()

    def written(self):
        """Bytes written so far."""
        found = re.findall(r"^progress (\d+) of", self.output(), re.MULTILINE)
        return int(found[-1]) if found else 0

    def reconnects(self):
        """How often it has found the engine again."""
        return self.output().count("reconnected")

    def until_written(self, count, seconds):
        """Waits until so many bytes have been written."""

        def enough():
            check(self.is_running(), f"cleave-verify ended early: {self.output()[-2000:]}")
            return self.written() >= count

        until(enough, seconds, lambda: f"cleave-verify wrote {self.written()} of {count} bytes")

    def end_writing(self):
        """Tells it to go on to checking everything."""
        self._process.stdin.close()

    def is_running(self):
        """Whether it has not ended."""
        return self._process.poll() is None

    def finish(self, seconds):
        """Waits for its end, which must be a success; the figures of its last line."""
        return self._figures(seconds, "verified ")

    def _figures(self, seconds, begin):
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"cleave-verify did not end in {seconds} s: {self.output()[-2000:]}") from None
        check(status == 0, f"cleave-verify ended with {status}: {self.output()[-2000:]}")
        last = self.output().splitlines()[-1]
        check(last.startswith(begin), f"cleave-verify said {last!r}")
        return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", last)}

    def _end(self):
        if self.is_running():
            self._process.kill()
            self._process.wait()


class Probe(Verifier):
    """A front end that the engine must refuse by the time that it asks: `ask` puts reads and writes into its ring."""

    def __init__(self, context, cluster, vdisk):
        super().__init__(context, cluster, vdisk, 0, ["--probe"], until_told=True)
        self._until_said("connected")

    def ask(self):
        """Reads and writes, which nobody takes while the engine is stopped."""
        self._process.stdin.close()
        self._until_said("asked")

    def finish(self, seconds):
        """Waits until all of it was refused; the figures."""
        return self._figures(seconds, "refused ")

    def _until_said(self, word):
        until(lambda: word in self.output().splitlines(), 60, lambda: f"it said {self.output()!r}")


def _files(context):
    return os.listdir(context.folder)

"""The host engine's program is replaced while front ends go on."""

import os
import re
import shutil

from cluster import HOST, Cluster
from framework import check, scenario
from verifier import Verifier


def _script(path, text):
    """A program that says it is a host engine."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'#!/bin/sh\n[ "$1" = --version ] && echo "cleave-host 9.9" && exit\n{text}\n')
    os.chmod(path, 0o755)
    return path


@scenario
def an_upgrade_is_no_more_than_a_pause(context):
    """Three upgrades under load; programs that are none, that give up early, that end once they are alone."""
    cluster = Cluster(context)
    cluster.start("--vdisk", "data:512M")
    copy = shutil.copy(context.options.program("cleave-host"), context.path("cleave-host"))
    verifier = Verifier(context, cluster, "data", 8 << 30, until_told=True)
    verifier.until_written(32 << 20, 300)
    stalls = []
    for program in (["--program", copy], [], ["--program", copy]):
        before, reconnects = cluster.pid(HOST), verifier.reconnects()
        said = cluster.cleave("host", "upgrade", *program)
        stalls += [int(found) for found in re.findall(r"at most (\d+) ms", said)]
        check(cluster.pid(HOST) != before, "it is the same process")
        verifier.until_written(verifier.written() + (16 << 20), 300)
        check(verifier.reconnects() > reconnects, "the verifier did not notice")
    check(len(stalls) == 3, f"{stalls}")
    print(f"  front ends waited at most {max(stalls)} ms for an upgrade")
    path = f"/proc/{cluster.pid(HOST)}/exe"
    check(os.readlink(path) == copy, f"it runs {os.readlink(path)}")

    before = cluster.pid(HOST)
    check("no cleave-host" in cluster.cleave_fails("host", "upgrade", "--program", "/bin/true"), "true")
    line = cluster.cleave_fails("host", "upgrade", "--program", context.path("none"))
    check("none" in line, line)
    early = _script(context.path("early"), "echo it cannot be >&2; exit 3")
    line = cluster.cleave_fails("host", "upgrade", "--program", early)
    check("goes on, because" in line and "it cannot be" in line, line)
    check(cluster.pid(HOST) == before, "the engine was ended for a program that gave up")
    # It lets its predecessor end, and then gives up: the program before it goes on.
    late = _script(context.path("late"), "echo standing by; sleep 2; exit 4")
    line = cluster.cleave_fails("host", "upgrade", "--program", late)
    check("did not go on" in line, line)
    cluster.until_status_ready()
    verifier.until_written(verifier.written() + (16 << 20), 300)
    path = f"/proc/{cluster.pid(HOST)}/exe"
    check(os.readlink(path) == copy, f"it runs {os.readlink(path)}")
    verifier.end_writing()
    figures = verifier.finish(900)
    check(figures["reconnects"] >= 4, f"{figures}")
    cluster.stop()

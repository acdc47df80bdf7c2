"""Runs end-to-end scenarios and ends with a line `e2e: N passed, N failed`.

    python3 scripts/e2e [--only NAME]... [--bytes 10G] [--programs target/release]
"""

import argparse
import os
import re
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
# `guest` lies beside this folder, the other modules in it.
sys.path[:0] = [FOLDER, os.path.dirname(FOLDER)]

import framework  # noqa: E402


def main():
    """Parses, runs, counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    programs = os.path.join(framework.ROOT, "target", "release")
    parser.add_argument("--programs", default=programs, help="where the built programs are")
    parser.add_argument("--only", action="append", default=[], help="scenarios whose name has this")
    parser.add_argument("--list", action="store_true", help="list scenarios")
    parser.add_argument("--bytes", default="1G", help="how much content verification writes")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    # Registered in the order in which they are run: quick ones first.
    modules = "errors lifecycle images upgrade cpu events flash pool dedupe store hosts frontend guests crashes"
    for module in modules.split():
        __import__(module)
    chosen = [
        one
        for one in framework.SCENARIOS
        if one.__name__ in options.only
        or not hasattr(one, "on_demand")
        and (not options.only or any(part in one.__name__ for part in options.only))
    ]
    if options.list:
        asked_for = [one for one in framework.SCENARIOS if hasattr(one, "on_demand") and not options.only]
        for one in chosen + asked_for:
            when = " (only when asked for)" if one in asked_for else ""
            print(f"{one.__name__}{when}: {one.__doc__.splitlines()[0]}")
        return 0
    if not chosen:
        parser.error("no scenario has such a name")
    run = framework.Options(os.path.abspath(options.programs), _bytes(options.bytes), options.seed)
    for program in ("cleave", "cleave-host", "cleave-datanode", "cleave-verify", "cleave-perf"):
        if not os.access(run.program(program), os.X_OK):
            parser.error(f"{run.program(program)} is not there; build it first")
    passed, failed = framework.run_all(chosen, run)
    for name in failed:
        print(f"failed: {name}")
    print(f"e2e: {passed} passed, {len(failed)} failed")
    return 1 if failed else 0


def _bytes(text):
    found = re.fullmatch(r"(\d+)([KMGT]?)", text)
    if not found:
        sys.exit(f"{text!r} is not a size, like 10G")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[found[2]]


if __name__ == "__main__":
    sys.exit(main())

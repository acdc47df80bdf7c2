"""Tortures real processes for some minutes: kills, stops, partitions, failing drives, with every byte checked.

    python3 scripts/torture MINUTES [--seed N] [--programs target/release]

Prints the seed, each fault, and figures at the end; with a status other than 0, and all logs kept, when anything
was not as it must be. The faults are the seed's; when exactly they hit is the machine's.
"""

import argparse
import os
import sys
import time

FOLDER = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = os.path.dirname(FOLDER)
sys.path[:0] = [os.path.join(SCRIPTS, "e2e"), SCRIPTS]

import framework  # noqa: E402
from torture import faults, rounds  # noqa: E402

# In so many seconds each kind has had its turn.
ALL_KINDS_SECONDS = 600


def main():
    """Parses, runs, reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("minutes", type=float, metavar="MINUTES")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="by default the time")
    programs = os.path.join(framework.ROOT, "target", "release")
    parser.add_argument("--programs", default=programs, help="where the built programs are")
    options = parser.parse_args()
    run = framework.Options(os.path.abspath(options.programs), 0, options.seed)
    totals = rounds.Totals()
    scenarios = []
    left = options.minutes * 60
    seed = options.seed
    while left > 0:
        seconds = min(left, rounds.ROUND_SECONDS)

        def tortured(context, seed=seed, seconds=seconds):
            rounds.run_round(context, seed, seconds, totals, say)

        tortured.__name__ = f"round_with_seed_{seed}"
        scenarios.append(tortured)
        left -= seconds
        seed += 1
    print(f"torture: seed {options.seed}, {options.minutes:g} minutes, {len(scenarios)} rounds", flush=True)
    passed, failed = framework.run_all(scenarios, run)
    for line in totals.lines():
        print(line)
    if not failed:
        faults.check_effects(totals.effects)
    if not failed and options.minutes * 60 >= ALL_KINDS_SECONDS:
        faults.check_kinds(totals.faults)
    print(f"torture: seed {options.seed}: {passed} rounds passed, {len(failed)} failed")
    return 1 if failed else 0


def say(line):
    """Prints at once."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

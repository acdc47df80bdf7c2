"""Runs the NVMe driver's exercise against QEMU's controller, in throw-away guests.

    python3 scripts/nvme [SCENARIO...]

Builds the exercise (`cargo build -p cleave-nvme --example exercise`) unless `--program` names one.
Each scenario is one guest; without names all are run. The last line is "N passed, N failed".
"""

import argparse
import os
import subprocess
import sys
import time

FOLDER = os.path.dirname(os.path.abspath(__file__))
if __package__ in (None, ""):
    # Started as a folder: make it the package that it is.
    sys.path.insert(0, os.path.dirname(FOLDER))
    from guest import GuestError
    from guest.kernel import KernelError
    from nvme.scenarios import SCENARIOS
else:
    from ..guest import GuestError
    from ..guest.kernel import KernelError
    from .scenarios import SCENARIOS

ROOT = os.path.dirname(os.path.dirname(FOLDER))


def build():
    """The path of the exercise, built."""
    cargo = ["cargo", "build", "-q", "-p", "cleave-nvme", "--example", "exercise"]
    subprocess.run(cargo, cwd=ROOT, check=True)
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    return os.path.join(target, "debug", "examples", "exercise")


def main():
    """Parses, builds, runs, reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--program", help="an exercise that is built already")
    parser.add_argument("--seconds", type=float, default=400, help="time limit of a guest")
    parser.add_argument("scenario", nargs="*", help=", ".join(SCENARIOS))
    options = parser.parse_args()
    unknown = [name for name in options.scenario if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no scenario {unknown[0]}; there are {', '.join(SCENARIOS)}")
    program = options.program or build()
    passed, failed = 0, 0
    for name in options.scenario or SCENARIOS:
        begin = time.monotonic()
        try:
            output = SCENARIOS[name].run({"exercise": program}, options.seconds)
            passed += 1
            said = "ok"
        except (GuestError, KernelError) as error:
            output = str(error)
            failed += 1
            said = "FAILED"
        print(output.rstrip())
        print(f"{said} {name} in {time.monotonic() - begin:.0f} s", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())

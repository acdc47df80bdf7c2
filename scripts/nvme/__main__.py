"""Runs the NVMe driver against QEMU's controller, in throw-away guests.

    python3 scripts/nvme [--programs target/release] [SCENARIO...]

Exercises need the exercise (`cargo build -p cleave-nvme --example exercise`, done here unless `--exercise`
names one); the rest needs the built programs of a cluster. Each scenario is one guest; without names all
are run. The last line is "nvme: N passed, N failed".
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
    from nvme.bench import Bench
    from nvme.cluster import PROGRAMS, Cluster
    from nvme.scenarios import EXERCISES
else:
    from ..guest import GuestError
    from ..guest.kernel import KernelError
    from .bench import Bench
    from .cluster import PROGRAMS, Cluster
    from .scenarios import EXERCISES

ROOT = os.path.dirname(os.path.dirname(FOLDER))
SCENARIOS = EXERCISES | {
    # The whole of Cleave on the driver, both ways.
    "iommu-cluster": Cluster(iommu=True),
    "physical-cluster": Cluster(iommu=False),
    # Printed, never judged: under software emulation seconds say little.
    "bench": Bench(),
}


def build():
    """The path of the exercise, built."""
    cargo = ["cargo", "build", "-q", "--locked", "-p", "cleave-nvme", "--example", "exercise"]
    subprocess.run(cargo, cwd=ROOT, check=True)
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    return os.path.join(target, "debug", "examples", "exercise")


def main():
    """Parses, builds, runs, reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    released = os.path.join(ROOT, "target", "release")
    parser.add_argument("--programs", default=released, help="where the built programs are")
    parser.add_argument("--exercise", help="an exercise that is built already")
    parser.add_argument("--seconds", type=float, default=400, help="time limit of a guest")
    parser.add_argument("scenario", nargs="*", help=", ".join(SCENARIOS))
    options = parser.parse_args()
    unknown = [name for name in options.scenario if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no scenario {unknown[0]}; there are {', '.join(SCENARIOS)}")
    chosen = options.scenario or list(SCENARIOS)
    programs = {name: os.path.join(os.path.abspath(options.programs), name) for name in PROGRAMS}
    if any(name not in EXERCISES for name in chosen):
        for path in programs.values():
            if not os.access(path, os.X_OK):
                parser.error(f"{path} is not there; build it first")
    if any(name in EXERCISES for name in chosen):
        programs["exercise"] = options.exercise or build()
    passed, failed = 0, []
    for name in chosen:
        begin = time.monotonic()
        try:
            output = SCENARIOS[name].run(programs, options.seconds)
            passed += 1
            said = "ok"
        except (GuestError, KernelError) as error:
            output = str(error)
            failed.append(name)
            said = "FAILED"
        print(output.rstrip())
        print(f"{said} {name} in {time.monotonic() - begin:.0f} s", flush=True)
    for name in failed:
        print(f"failed: nvme {name}")
    print(f"nvme: {passed} passed, {len(failed)} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())

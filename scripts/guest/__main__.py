"""Runs one command in a throw-away guest and exits with its exit status (125 at most).

    python3 scripts/guest --disk DIR/vhost/NAME.sock --program /usr/bin/fio -- 'fio --version'
"""

import argparse
import os
import sys

if __package__ in (None, ""):
    # Started as a folder: make it the package that it is.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from guest import Disk, Guest, GuestError
    from guest.kernel import KernelError
else:
    from . import Disk, Guest, GuestError
    from .kernel import KernelError


def main():
    """Parses, runs, reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--disk", action="append", default=[], help="socket of a vhost-user-blk disk")
    parser.add_argument("--queues", type=int, default=2, help="queues of each disk")
    parser.add_argument("--program", action="append", default=[], help="an executable for /bin")
    parser.add_argument("--memory", default="512M")
    parser.add_argument("--processors", type=int, default=2)
    parser.add_argument("--accelerator", help="as QEMU's -accel; by default what works")
    parser.add_argument("--seconds", type=float, default=600, help="time limit")
    parser.add_argument("command", nargs="+", help="a shell command")
    options = parser.parse_args()
    try:
        with Guest(
            " ".join(options.command),
            disks=[Disk(path, options.queues) for path in options.disk],
            programs=options.program,
            memory=options.memory,
            processors=options.processors,
            accelerator=options.accelerator,
        ) as guest:
            status, _ = guest.run(options.seconds, live=_show)
    except (GuestError, KernelError) as error:
        print(f"guest: {error}", file=sys.stderr)
        return 127
    return min(status, 125)


def _show(piece):
    sys.stdout.buffer.write(piece)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

"""A whole cluster in a guest, with its drives on the userspace driver, that serves a verified workload."""

import json
import os
import subprocess
import tempfile

if __package__ == "nvme":
    from guest import Guest, GuestError
    from nvme.scenarios import ADDRESS, FOLDER, MIB, Controller, Namespace
else:
    from ..guest import Guest, GuestError
    from .scenarios import ADDRESS, FOLDER, MIB, Controller, Namespace

PROGRAMS = ["cleave", "cleave-host", "cleave-datanode", "cleave-verify"]
# Formats differ, as drives of one pool may: 4 KiB and 512 bytes, with and without protection information.
NAMESPACES = [
    Namespace(megabytes=256),
    Namespace(block=512, megabytes=256),
    Namespace(megabytes=256, options=",ms=8,pi=1"),
    Namespace(megabytes=256),
]
WRITTEN = "48M"
COMMAND = """set -e
devices.sh hugepages 64
{take}
mkdir -p /tmp/r
cleave nvme list
cleave nvme identify {flag} {address}
cleave nvme smart {flag} {address}
start() {{
    cleave --dir /tmp/c dev {drives} "$@" >/tmp/out 2>/tmp/errors &
    supervisor=$!
    tries=0
    until grep -qx ready /tmp/out; do
        tries=$((tries + 1))
        kill -0 $supervisor && [ $tries -lt 1200 ] || {{ cat /tmp/out /tmp/errors; exit 1; }}
        sleep 0.1
    done
}}
stop() {{
    kill -TERM $supervisor
    wait $supervisor || {{ cat /tmp/errors; exit 1; }}
}}
verify() {{
    cleave-verify --socket /tmp/c/vhost/v.sock --depth 16 "$@" >/tmp/verify 2>&1 ||
        {{ tail -n 40 /tmp/verify /tmp/errors /tmp/c/log/*; exit 1; }}
    tail -n 1 /tmp/verify
}}
if cleave nvme bench {flag} {address} --write; then echo "data would be lost without consent"; exit 1; fi
start --vdisk v:64M --host-memory 96M --log-size 32M
verify --bytes {written} --save /tmp/saved
cleave --dir /tmp/c status
cleave --dir /tmp/c stats --json >/tmp/stats
if cleave nvme identify {flag} {address}; then echo "a controller that is in use was taken"; exit 1; fi
# What the idle owner of the drives takes of a processor, in ticks.
process() {{ cleave --dir /tmp/c status | sed -n 's/.*datanode-1-a running, process \\([0-9]*\\).*/\\1/p'; }}
used() {{ awk '{{ print $14 + $15 }}' "/proc/$1/stat"; }}
sleep 3
active=$(process)
before=$(used "$active")
sleep 10
echo "idle: $(($(used "$active") - before)) ticks of 10 ms in 10 s"
# The drives' owner dies and comes back, while it is written to.
cleave-verify --socket /tmp/c/vhost/v.sock --depth 16 --bytes 16M --load /tmp/saved --save /tmp/saved2 \\
    >/tmp/verify 2>&1 &
verifier=$!
sleep 1
kill -9 "$(process)"
sleep 1
cleave --dir /tmp/c restart datanode-1-a
wait $verifier || {{ tail -n 40 /tmp/verify /tmp/errors /tmp/c/log/*; exit 1; }}
tail -n 1 /tmp/verify
stop
# Everything is on the drives after a clean stop, and the log in the vault.
start
verify --bytes 0 --load /tmp/saved2
stop
echo STATISTICS
cat /tmp/stats
"""


class Cluster:
    """A guest in which `cleave dev` runs on namespaces of its controller."""

    def __init__(self, iommu):
        self.controller = Controller(NAMESPACES, iommu=iommu)

    def command(self):
        """What the guest runs."""
        scheme = "nvme" if self.controller.iommu else "nvme-unsafe"
        numbers = range(1, len(NAMESPACES) + 1)
        return COMMAND.format(
            take=self.controller.take(),
            flag="" if self.controller.iommu else "--unsafe-without-iommu",
            address=ADDRESS,
            drives=" ".join(f"--drive {scheme}:{ADDRESS}/{number}" for number in numbers),
            written=WRITTEN,
        )

    def run(self, programs, seconds):
        """Boots and runs; the output. Raises `GuestError` when something failed."""
        with tempfile.TemporaryDirectory(prefix="nvme-") as folder:
            carried = [os.path.join(FOLDER, "devices.sh")]
            for name in PROGRAMS:
                carried.append(stripped(programs[name], folder))
            with Guest(
                self.command(),
                programs=carried,
                memory="1536M",
                modules=self.controller.modules(),
                kernel_arguments=self.controller.kernel_arguments(),
                machine=self.controller.machine(),
                devices=self.controller.arguments(folder),
            ) as guest:
                status, output = guest.run(seconds)
                if status != 0:
                    raise GuestError(f"exit status {status}\n{output}")
        said, statistics = output.split("STATISTICS", 1)
        controllers = json.loads(statistics)["controllers"]
        drives = [drive for controller in controllers for drive in controller["drives"]]
        written = sum(drive["write"]["bytes"] for drive in drives)
        if written < 8 * MIB:
            raise GuestError(f"only {written} bytes went to the drives\n{output}")
        return f"{said}{written >> 20} MiB went to the drives"


def stripped(program, folder):
    """A copy without what only a debugger reads: the guest's memory has to hold it."""
    target = os.path.join(folder, os.path.basename(program))
    subprocess.run(["strip", "-o", target, program], check=True)
    return target

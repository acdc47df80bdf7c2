"""A whole cluster in a guest, with its drives and its flash on the userspace driver, that serves a verified
workload."""

import json
import os
import subprocess
import tempfile

if __package__ == "nvme":
    from guest import Guest, GuestError
    from nvme.scenarios import ADDRESS, FOLDER, MIB, SECOND, Controller, Namespace
else:
    from ..guest import Guest, GuestError
    from .scenarios import ADDRESS, FOLDER, MIB, SECOND, Controller, Namespace

PROGRAMS = ["cleave", "cleave-host", "cleave-datanode", "cleave-verify"]
# Formats differ, as drives of one pool may: 4 KiB and 512 bytes, with and without protection information.
NAMESPACES = [
    Namespace(megabytes=256),
    Namespace(block=512, megabytes=256),
    Namespace(megabytes=256, options=",ms=8,pi=1"),
    Namespace(megabytes=256),
]
FLASH_MEGABYTES = 256
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
start --flash {flash} --vdisk v:64M --host-memory 96M --log-size 32M
verify --bytes {written} --save /tmp/saved
cleave --dir /tmp/c status
cleave --dir /tmp/c stats --json >/tmp/stats
cleave --dir /tmp/c status --json >/tmp/status
if cleave nvme identify {flag} {address}; then echo "a controller that is in use was taken"; exit 1; fi
# What the idle owner of the drives takes of a processor, in ticks.
engine() {{ cleave --dir /tmp/c status | sed -n "s/.*$1 running, process \\([0-9]*\\).*/\\1/p"; }}
used() {{ awk '{{ print $14 + $15 }}' "/proc/$1/stat"; }}
sleep 3
active=$(engine datanode-1-a)
before=$(used "$active")
sleep 10
echo "idle: $(($(used "$active") - before)) ticks of 10 ms in 10 s"
# The owners of the drives and of the flash die and come back, while they are used.
cleave-verify --socket /tmp/c/vhost/v.sock --depth 16 --bytes 16M --load /tmp/saved --save /tmp/saved2 \\
    >/tmp/verify 2>&1 &
verifier=$!
sleep 1
kill -9 "$(engine datanode-1-a)"
sleep 1
cleave --dir /tmp/c restart datanode-1-a
kill -9 "$(engine host-1)"
cleave --dir /tmp/c restart host-1
wait $verifier || {{ tail -n 40 /tmp/verify /tmp/errors /tmp/c/log/*; exit 1; }}
tail -n 1 /tmp/verify
stop
# Everything is on the drives after a clean stop, and the log in the vault.
start
verify --bytes 0 --load /tmp/saved2
stop
echo STATISTICS
cat /tmp/stats
echo STATUS
cat /tmp/status
"""


class Cluster:
    """A guest in which `cleave dev` runs on namespaces of its controller."""

    def __init__(self, iommu):
        self.controller = Controller(NAMESPACES, iommu=iommu, second=FLASH_MEGABYTES)

    def command(self):
        """What the guest runs."""
        scheme = "nvme" if self.controller.iommu else "nvme-unsafe"
        numbers = range(1, len(NAMESPACES) + 1)
        return COMMAND.format(
            take=self.controller.take(),
            flag="" if self.controller.iommu else "--unsafe-without-iommu",
            address=ADDRESS,
            drives=" ".join(f"--drive {scheme}:{ADDRESS}/{number}" for number in numbers),
            flash=f"{scheme}:{SECOND}",
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
        said, rest = output.split("STATISTICS", 1)
        statistics, status = rest.split("STATUS", 1)
        controllers = json.loads(statistics)["controllers"]
        drives = [drive for controller in controllers for drive in controller["drives"]]
        written = sum(drive["write"]["bytes"] for drive in drives)
        if written < 8 * MIB:
            raise GuestError(f"only {written} bytes went to the drives\n{output}")
        flash = [device for host in json.loads(status)["hosts"] for device in host["flash"]["devices"]]
        if len(flash) != 1 or flash[0]["state"] != "in_use" or flash[0]["bytes_written"] < MIB:
            raise GuestError(f"flash was not used: {flash}\n{output}")
        kept = flash[0]["bytes_written"]
        return f"{said}{written >> 20} MiB went to the drives, {kept >> 20} MiB to flash"


def stripped(program, folder):
    """A copy without what only a debugger reads: the guest's memory has to hold it."""
    target = os.path.join(folder, os.path.basename(program))
    subprocess.run(["strip", "-o", target, program], check=True)
    return target

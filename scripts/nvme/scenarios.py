"""The guests in which the NVMe driver is exercised: what the controller is, what is tested.

The driver's memory, interrupts and registers are those of QEMU's independent controller. With an
IOMMU the guest has Intel's, emulated, and the controller is given to vfio-pci; without, the driver
uses sysfs and physical addresses.
"""

import json
import os
import shutil
import socket
import tempfile

if __package__ == "nvme":
    from guest import Guest, GuestError
else:
    from ..guest import Guest, GuestError

FOLDER = os.path.dirname(os.path.abspath(__file__))
ADDRESS = "0000:00:05.0"
# The kernel's driver would probe namespaces, and meet the injected errors first.
WITHOUT_KERNEL_DRIVER = "initcall_blacklist=nvme_init"
IOMMU = "intel-iommu,intremap=on,caching-mode=on,aw-bits=48"
MIB = 1 << 20


class Namespace:
    """A namespace: its format, and QEMU's options of the drive under it."""

    def __init__(self, block=4096, megabytes=32, options="", blockdev=None):
        self.block = block
        self.megabytes = megabytes
        self.options = options
        self.blockdev = blockdev or {}


class Scenario:
    """A guest. `tests`: what the exercise is told to do."""

    def __init__(
        self, tests, namespaces, iommu=True, controller="", options="", kernel_driver=False, before=""
    ):
        self.tests = tests
        self.namespaces = namespaces
        self.iommu = iommu
        self.controller = controller
        self.options = options
        self.kernel_driver = kernel_driver
        self.before = before

    def devices(self, folder):
        """QEMU's arguments; images are made in `folder`."""
        arguments = ["-device", IOMMU] if self.iommu else []
        arguments += ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
        controller = f"nvme,id=nvme0,serial=EXERCISE,addr=5{self.controller}"
        arguments += ["-device", controller]
        for number, namespace in enumerate(self.namespaces, 1):
            image = f"{folder}/namespace{number}"
            with open(image, "wb") as file:
                file.truncate(namespace.megabytes * MIB)
            medium = {"driver": "file", "filename": image, "discard": "unmap"}
            medium["node-name"] = f"file{number}"
            arguments += ["-blockdev", json.dumps(medium)]
            below = f"file{number}"
            if namespace.blockdev:
                over = dict(namespace.blockdev)
                over["node-name"] = f"over{number}"
                over["image" if over["driver"] == "blkdebug" else "file"] = below
                if over["driver"] == "throttle":
                    limits = over.pop("limits")
                    group = f"throttle-group,id=group{number},{limits}"
                    arguments += ["-object", group]
                    over["throttle-group"] = f"group{number}"
                arguments += ["-blockdev", json.dumps(over)]
                below = f"over{number}"
            sizes = f"logical_block_size={namespace.block},physical_block_size={namespace.block}"
            device = f"nvme-ns,drive={below},bus=nvme0,nsid={number},{sizes}{namespace.options}"
            arguments += ["-device", device]
        return arguments

    def programs(self):
        """What else the command needs."""
        return [shutil.which("fio") or "/usr/bin/fio"] if "fio " in self.before else []

    def command(self):
        """What the guest runs."""
        driver = "vfio-pci" if self.iommu else "none"
        option = "" if self.iommu else "--without-iommu"
        return f"""set -e
devices.sh hugepages 32
{self.before}
devices.sh take {ADDRESS} {driver}
devices.sh take {ADDRESS} {driver}
devices.sh list
exercise {option} {self.options} {ADDRESS} {self.tests}
"""


FORMATS = [
    Namespace(),
    Namespace(block=512),
    Namespace(options=",ms=8,pi=1"),
    Namespace(block=512, options=",ms=8,mset=1,pi=3,pil=1"),
]
READ_ERROR = {"event": "none", "iotype": "read", "errno": 5, "sector": MIB // 512, "once": False}
FLUSH_ERROR = {"event": "none", "iotype": "flush", "errno": 5, "once": False}
MOUNTED = f"""mkdir -p /mnt
mke2fs -F /dev/nvme0n2 >/dev/null 2>&1 && mount -t ext2 /dev/nvme0n2 /mnt
if devices.sh take {ADDRESS} vfio-pci; then echo "a mounted controller was taken"; exit 1; fi
umount /mnt
"""
FIO = """for engine in io_uring libaio; do for depth in 1 32; do
fio --name=$engine-QD$depth --filename=/dev/nvme0n1 --ioengine=$engine --iodepth=$depth --rw=randread \\
    --bs=4k --direct=1 --runtime=2 --time_based --group_reporting | grep -E "groupid|IOPS|cpu "
done; done
"""

SCENARIOS = {
    # Everything, with an IOMMU; the controller comes from the kernel's driver.
    "iommu": Scenario(
        "identify content depths threads drive sleep reset event",
        FORMATS,
        kernel_driver=True,
        before=MOUNTED,
    ),
    # Physical addresses; no limit of transfers.
    "physical": Scenario(
        "identify content depths drive reset", FORMATS[:3], iommu=False, controller=",mdts=0"
    ),
    # Transfers of 8 KiB, and two queue pairs.
    "small": Scenario(
        "identify content depths drive reset",
        FORMATS[:2],
        controller=",mdts=1,max_ioqpairs=2,vsl=1",
    ),
    # Reads at 1 MiB fail, and flushes.
    "errors": Scenario(
        "errors",
        [
            Namespace(
                blockdev={"driver": "blkdebug", "inject-error": [READ_ERROR, FLUSH_ERROR]},
            )
        ],
    ),
    # Printed, never judged: under software emulation seconds say little.
    "bench": Scenario("bench", [Namespace()], kernel_driver=True, before=FIO),
    # Two requests a second: they are out of time, aborted, and the controller is reset.
    "timeout": Scenario(
        "timeout",
        [Namespace(blockdev={"driver": "throttle", "limits": "x-iops-total=2"})],
        options="--timeout-ms 700",
    ),
}


def run(scenario, program, seconds):
    """Runs one guest; its output. Raises `GuestError` when it failed."""
    # QEMU's control socket needs a short path.
    with tempfile.TemporaryDirectory(prefix="nvme-") as folder:
        modules = ["vfio_pci", "vfio_iommu_type1"] if scenario.iommu else []
        if "mount " in scenario.before:
            modules.append("ext4")
        arguments = "intel_iommu=on iommu=nopt" if scenario.iommu else "intel_iommu=off"
        if not scenario.kernel_driver:
            arguments += " " + WITHOUT_KERNEL_DRIVER
        with Guest(
            scenario.command(),
            programs=[program, os.path.join(FOLDER, "devices.sh")] + scenario.programs(),
            memory="768M",
            modules=modules,
            kernel_arguments=arguments,
            machine="kernel-irqchip=split" if scenario.iommu else "",
            devices=scenario.devices(folder),
        ) as guest:
            guest.start()
            if "event" in scenario.tests.split():
                guest.until_output("waiting for an event", seconds)
                _report_health(f"{folder}/qmp")
            status = guest.wait(seconds)
            if status != 0:
                raise GuestError(f"exit status {status}\n{guest.output()}")
            return guest.output()


def _report_health(path):
    """Makes the controller raise its reliability warning."""
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(path)
        with control.makefile("rw") as file:
            file.readline()
            for command in (
                {"execute": "qmp_capabilities"},
                {
                    "execute": "qom-set",
                    "arguments": {
                        "path": "/machine/peripheral/nvme0",
                        "property": "smart_critical_warning",
                        "value": 4,
                    },
                },
            ):
                file.write(json.dumps(command) + "\n")
                file.flush()
                answer = json.loads(file.readline())
                while "event" in answer:
                    answer = json.loads(file.readline())
                if "return" not in answer:
                    raise GuestError(f"QEMU refused {command['execute']}: {answer}")

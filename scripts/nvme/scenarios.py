"""The guests in which the NVMe driver is exercised: what the controller is, what is tested.

The driver's memory, interrupts and registers are those of QEMU's independent controller. With an
IOMMU the guest has Intel's, emulated, and the controller is given to vfio-pci; without, the driver
uses sysfs and physical addresses. Every exercise is run both ways.
"""

import json
import os
import re
import socket
import struct
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
# Bytes of protection information a block.
TUPLE = 8
# What QEMU writes down: each guard that it checks.
GUARDS_TRACED = ["-trace", "pci_nvme_dif_prchk_guard*"]
# What the exercise says before it waits for the test.
EVENT = "waiting for an event"
SPOILED = "waiting for spoiled data"


class Namespace:
    """A namespace: its format, and QEMU's options of the drive under it."""

    def __init__(self, block=4096, megabytes=32, options="", blockdev=None):
        self.block = block
        self.megabytes = megabytes
        self.options = options
        self.blockdev = blockdev or {}

    @property
    def protected(self):
        """Whether it has protection information."""
        return "pi=" in self.options

    def check_protection(self, file, count):
        """Whether the first blocks of an image have the information that the driver asked for: QEMU
        keeps it behind all blocks."""
        blocks = self.megabytes * MIB // (self.block + TUPLE)
        for block in range(count):
            file.seek(block * self.block)
            data = file.read(self.block)
            file.seek(blocks * self.block + block * TUPLE)
            guard, _, reference = struct.unpack(">HHI", file.read(TUPLE))
            if guard != _crc_t10dif(data):
                raise GuestError(f"block {block} of {self.options} has guard {guard:#x}")
            # Type 3 does not number blocks.
            if "pi=3" not in self.options and reference != block:
                raise GuestError(f"block {block} of {self.options} has reference tag {reference}")


class Controller:
    """QEMU's controller and its namespaces, over images in a folder."""

    def __init__(self, namespaces, options="", iommu=True):
        self.namespaces = namespaces
        self.options = options
        self.iommu = iommu

    def arguments(self, folder):
        """QEMU's arguments; makes the images."""
        arguments = ["-device", IOMMU] if self.iommu else []
        arguments += ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
        arguments += ["-device", f"nvme,id=nvme0,serial=EXERCISE,addr=5{self.options}"]
        for number, namespace in enumerate(self.namespaces, 1):
            with open(image(folder, number), "wb") as file:
                file.truncate(namespace.megabytes * MIB)
            medium = {"driver": "file", "filename": image(folder, number), "discard": "unmap"}
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

    def machine(self):
        """Properties of QEMU's machine."""
        return "kernel-irqchip=split" if self.iommu else ""

    def kernel_arguments(self):
        """For the guest's kernel."""
        return "intel_iommu=on iommu=nopt" if self.iommu else "intel_iommu=off"

    def modules(self):
        """That the guest's kernel needs."""
        return ["vfio_pci", "vfio_iommu_type1"] if self.iommu else []

    def take(self):
        """The command by which the guest takes the controller from the kernel; twice, which changes
        nothing."""
        take = f"devices.sh take {ADDRESS} {'vfio-pci' if self.iommu else 'none'}"
        return f"{take}\n{take}"


def image(folder, number):
    """The image of a namespace."""
    return f"{folder}/namespace{number}"


class Exercise:
    """A guest that runs the exercise. `tests`: what it is told to do."""

    def __init__(
        self,
        tests,
        controller,
        options="",
        kernel_driver=False,
        before="",
        hugepages="devices.sh hugepages 32",
        kernel_arguments="",
        nodes=(),
    ):
        self.tests = tests
        self.controller = controller
        self.options = options
        self.kernel_driver = kernel_driver
        self.before = before
        self.hugepages = hugepages
        self.kernel_arguments = kernel_arguments
        self.nodes = nodes

    def command(self):
        """What the guest runs."""
        option = "" if self.controller.iommu else "--without-iommu"
        return f"""set -e
{self.hugepages}
{self.before}
{self.controller.take()}
devices.sh list
exercise {option} {self.options} {ADDRESS} {self.tests}
"""

    def run(self, programs, seconds):
        """Boots and runs; the output. Raises `GuestError` when something failed."""
        # QEMU's control socket needs a short path.
        with tempfile.TemporaryDirectory(prefix="nvme-") as folder:
            arguments = f"{self.controller.kernel_arguments()} {self.kernel_arguments}"
            if not self.kernel_driver:
                arguments += " " + WITHOUT_KERNEL_DRIVER
            with Guest(
                self.command(),
                programs=[programs["exercise"], os.path.join(FOLDER, "devices.sh")],
                memory="768M",
                nodes=self.nodes,
                modules=self.controller.modules(),
                kernel_arguments=arguments,
                machine=self.controller.machine(),
                devices=self.controller.arguments(folder) + ["-D", f"{folder}/trace"] + GUARDS_TRACED,
            ) as guest:
                guest.start()
                tests = self.tests.split()
                if "protection" in tests:
                    guest.until_output(SPOILED, seconds)
                    spoiled = self._spoil(folder)
                    guest.tell("spoiled")
                if "event" in tests:
                    guest.until_output(EVENT, seconds)
                    _report_health(f"{folder}/qmp")
                status = guest.wait(seconds)
                if status != 0:
                    raise GuestError(f"exit status {status}\n{guest.output()}")
                if "protection" in tests and _wrong_guards(f"{folder}/trace") < spoiled:
                    raise GuestError(f"the driver did not have spoiled data checked\n{guest.output()}")
                return guest.output()

    def _spoil(self, folder):
        """Checks the protection information of what was written, and changes a byte of the first
        block of each namespace that would notice. How many there were."""
        count = 0
        for number, namespace in enumerate(self.controller.namespaces, 1):
            if not namespace.protected:
                continue
            count += 1
            with open(image(folder, number), "r+b") as file:
                namespace.check_protection(file, (64 << 10) // namespace.block)
                file.seek(100)
                byte = file.read(1)
                file.seek(100)
                file.write(bytes([byte[0] ^ 0xFF]))
        return count


def _wrong_guards(path):
    """How often the controller found a guard that does not belong to its data."""
    with open(path, encoding="ascii", errors="replace") as file:
        found = re.findall(r"prchk_guard_crc16 guard 0x(\w+) crc 0x(\w+)", file.read())
    return sum(guard != crc for guard, crc in found)


def _crc_t10dif(data):
    """The guard of protection information (NVM 5.2.1.1): CRC-16 with polynomial 8BB7h."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ (0x8BB7 if crc & 0x8000 else 0)
        crc &= 0xFFFF
    return crc


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


# 4 KiB and 512 bytes; with protection information of types 1 and 3, apart and in line, before and
# behind other metadata; and metadata without protection, which is refused.
FORMATS = [
    Namespace(),
    Namespace(block=512),
    Namespace(options=",ms=8,pi=1"),
    Namespace(block=512, options=",ms=8,mset=1,pi=3,pil=1"),
    Namespace(block=512, options=",ms=8,mset=1,pi=2"),
    Namespace(options=",ms=16"),
]
READ_ERROR = {"event": "none", "iotype": "read", "errno": 5, "sector": MIB // 512, "once": False}
FLUSH_ERROR = {"event": "none", "iotype": "flush", "errno": 5, "once": False}
FAILING = Namespace(blockdev={"driver": "blkdebug", "inject-error": [READ_ERROR, FLUSH_ERROR]})
# Two requests a second: they are out of time.
SLOW = Namespace(blockdev={"driver": "throttle", "limits": "x-iops-total=2"})
# What is in use is refused, also under another name, and by a process alone.
REFUSED = f"""refused() {{
    if devices.sh take {ADDRESS} vfio-pci; then echo "a controller that is in use was taken"; exit 1; fi
}}
mkdir -p /mnt
mke2fs -F /dev/nvme0n2 >/dev/null 2>&1 && mount -t ext2 /dev/nvme0n2 /mnt
refused
umount /mnt
mkswap /dev/nvme0n1 >/dev/null
swapon /dev/nvme0n1
refused
swapoff /dev/nvme0n1
sleep 1000 </dev/nvme0n1 &
refused
kill $!
wait
"""


def _both_ways(iommu):
    """The exercises, with or without an IOMMU."""

    def controller(namespaces, options=""):
        return Controller(namespaces, options, iommu)

    sleep = " sleep" if iommu else ""
    return {
        # Everything; with an IOMMU the controller comes from the kernel's driver.
        "formats": Exercise(
            f"identify content vectors depths threads drive pages{sleep} reset protection event",
            controller(FORMATS),
            kernel_driver=iommu,
            before=REFUSED if iommu else "",
        ),
        # No limit of transfers.
        "unlimited": Exercise("content vectors depths drive", controller(FORMATS[:3], ",mdts=0")),
        # Transfers of 8 KiB, and two queue pairs.
        "small": Exercise(
            "content vectors depths drive reset",
            controller(FORMATS[:3], ",mdts=1,max_ioqpairs=2,vsl=1"),
        ),
        # Reads at 1 MiB fail, and flushes.
        "errors": Exercise("errors", controller([FAILING])),
        # Requests are out of time, aborted, and the controller is reset.
        "timeout": Exercise("timeout", controller([SLOW, Namespace()]), options="--timeout-ms 700"),
        # Pages of 1 GiB, of the node that the controller is at: the second, says sysfs.
        "gigantic": Exercise(
            "pages content drive",
            controller([Namespace()]),
            options="--gigantic",
            hugepages="devices.sh hugepages 1 1G 1",
            before=f"echo 1 >/sys/bus/pci/devices/{ADDRESS}/numa_node",
            kernel_arguments="hugepagesz=1G hugepages=1:1",
            # Of which a whole gigabyte lies above the gap below 4 GiB.
            nodes=(512, 3200),
        ),
    }


EXERCISES = {
    f"{way}-{name}": exercise
    for way, iommu in (("iommu", True), ("physical", False))
    for name, exercise in _both_ways(iommu).items()
}

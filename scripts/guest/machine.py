"""One guest: built, started, watched, stopped.

    with Guest("fio --version", programs=["/usr/bin/fio"]) as guest:
        guest.start()
        status = guest.wait(seconds=300)
        print(guest.output())

Between start and wait the test may do what it likes to the guest's disks, and tell the command
lines on its standard input. A guest that panics, or
that ends without a report, raises `GuestError` with the end of its console.
"""

import os
import signal
import subprocess
import tempfile
import threading
import time

from . import kernel
from .archive import EXECUTABLE, Archive

FOLDER = os.path.dirname(os.path.abspath(__file__))
TARGET = os.path.join(os.path.dirname(os.path.dirname(FOLDER)), "target", "guest")
SYSTEM_MODULES = ["virtio_pci", "virtio_console", "virtio_blk", "crc32c_generic"]
# Only what a guest needs to be quick: no waiting for devices that are not there.
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=4 panic=-1 tsc=reliable no_timer_check mitigations=off "
    "nowatchdog audit=0 apparmor=0 cryptomgr.notests=1 rcupdate.rcu_expedited=1 random.trust_cpu=on"
)
BUSYBOX = ["/bin/busybox", "/usr/bin/busybox"]
TCG = "tcg,thread=multi,tb-size=256"
KVM = "kvm"
TRIAL_SECONDS = 20


class GuestError(Exception):
    """The guest could not be built, did not boot, died, or did not end in time."""


class Disk:
    """A vhost-user-blk disk of a guest: the socket on which its engine listens."""

    def __init__(self, socket, queues=2):
        self.socket = os.path.abspath(socket)
        self.queues = queues

    def arguments(self, number):
        """QEMU's arguments; `reconnect` lets the guest outlive a killed engine."""
        return [
            "-chardev",
            f"socket,id=disk{number},path={self.socket},reconnect=1",
            "-device",
            f"vhost-user-blk-pci,chardev=disk{number},num-queues={self.queues}",
        ]


class Guest:
    """A guest that runs one shell command as root. It has a busybox and what it is given."""

    def __init__(
        self,
        command,
        disks=(),
        programs=(),
        files=(),
        memory="512M",
        nodes=(),
        processors=2,
        accelerator=None,
        modules=(),
        kernel_arguments="",
        machine="",
        devices=(),
    ):
        """`programs`: paths of executables, put in /bin with their libraries. `files`: pairs of a
        path of this machine and one of the guest. `accelerator`: what QEMU's -accel takes; by
        default KVM where a guest boots under it, else TCG. `modules`: of the kernel, loaded before
        the command runs. `nodes`: instead of `memory`, MiB of each NUMA node, of which the first has the
        processors. `kernel_arguments`: added to the kernel's command line. `machine`:
        properties added to QEMU's -machine. `devices`: arguments added to QEMU's."""
        self.command = command
        self.disks = list(disks)
        self.programs = list(programs)
        self.files = list(files)
        self.memory = memory
        self.nodes = list(nodes)
        self.processors = processors
        self.accelerator = accelerator
        self.modules = list(modules)
        self.kernel_arguments = kernel_arguments
        self.machine = machine
        self.devices = list(devices)
        self._folder = None
        self._process = None
        self._live = None

    def __enter__(self):
        os.makedirs(TARGET, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="run-", dir=TARGET)
        return self

    def __exit__(self, *_):
        self.stop()
        self._folder.cleanup()

    def start(self, live=None):
        """Boots. `live`: a function that is given the command's output, as bytes, as it comes."""
        if self.accelerator is None:
            self.accelerator = accelerator()
        linux = kernel.fetch(TARGET)
        with open(self._path("initramfs"), "wb") as file:
            file.write(self._initramfs(linux))
        for name in ("output", "status", "console"):
            open(self._path(name), "wb").close()
        os.mkfifo(self._path("input.in"))
        os.mkfifo(self._path("input.out"))
        arguments = self._arguments(linux.image)
        with open(self._path("qemu"), "wb") as errors:
            try:
                self._process = subprocess.Popen(
                    arguments, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
                )
            except FileNotFoundError:
                raise GuestError(f"{arguments[0]} is not installed") from None
        if live is not None:
            self._live = threading.Thread(target=self._follow, args=(live,), daemon=True)
            self._live.start()

    def is_running(self):
        """Whether the guest has not ended."""
        return self._process.poll() is None

    def is_up(self):
        """Whether the command has begun."""
        return "up" in self._text("status").split()

    def until_up(self, seconds=120):
        """Waits until the command has begun."""
        self._until(self.is_up, seconds, "it did not boot")

    def until_output(self, text, seconds):
        """Waits until the command has written `text`."""
        self._until(lambda: text in self.output(), seconds, f"it did not say {text!r}")

    def until_count(self, text, count, seconds):
        """Waits until the command has written `text` so many times."""
        enough = lambda: self.output().count(text) >= count
        self._until(enough, seconds, f"it did not say {text!r} {count} times")

    def tell(self, line):
        """Gives the command a line on its standard input."""
        with open(self._path("input.in"), "wb", buffering=0) as file:
            file.write(line.encode() + b"\n")

    def wait(self, seconds):
        """Waits for the end of the command and of the guest; the command's exit status."""
        deadline = time.monotonic() + seconds
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise GuestError(f"the guest did not end within {seconds} s; {self._tail()}") from None
        if self._live is not None:
            self._live.join()
        words = self._text("status").split()
        if "exit" not in words:
            raise GuestError(f"the guest ended without a report; {self._tail()}")
        return int(words[words.index("exit") + 1])

    def run(self, seconds=300, live=None):
        """Boots and waits; `(exit status, output)`."""
        self.start(live)
        status = self.wait(seconds)
        return status, self.output()

    def output(self):
        """What the command has written so far."""
        return self._text("output")

    def pause(self):
        """Stops the guest's processors, as a pause of the whole machine would."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self):
        """Undoes `pause`."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self):
        """Ends the guest at once, as a power cut would."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _until(self, condition, seconds, otherwise):
        deadline = time.monotonic() + seconds
        while not condition():
            if self._process.poll() is not None:
                # The last words may have come after the condition was looked at.
                if condition():
                    return
                raise GuestError(f"the guest ended too early: {otherwise}; {self._tail()}")
            if time.monotonic() > deadline:
                raise GuestError(f"{otherwise} within {seconds} s; {self._tail()}")
            time.sleep(0.05)

    def _follow(self, live):
        with open(self._path("output"), "rb") as file:
            ended = False
            while True:
                piece = file.read()
                if piece:
                    live(piece)
                elif ended:
                    return
                else:
                    ended = self._process.poll() is not None
                    time.sleep(0.1)

    def _path(self, name):
        return os.path.join(self._folder.name, name)

    def _text(self, name):
        with open(self._path(name), "rb") as file:
            return file.read().decode("utf-8", "replace").replace("\r\n", "\n")

    def _tail(self):
        parts = [
            f"{name}:\n{self._text(name)[-3000:]}"
            for name in ("qemu", "console", "output")
            if self._text(name).strip()
        ]
        return "\n".join(parts) or "it printed nothing"

    def _initramfs(self, linux):
        archive = Archive()
        for name in ("bin", "dev", "mnt", "proc", "root", "run", "sys", "tmp"):
            archive.directory(name)
        archive.console("dev/console")
        busybox = next((path for path in BUSYBOX if os.path.exists(path)), None)
        if busybox is None:
            raise GuestError("busybox is not installed: apt-get install busybox-static")
        # What the test brings comes before the applet of the same name.
        for path in self.programs:
            archive.program(path, "bin/" + os.path.basename(path))
        for source, name in self.files:
            archive.file(source, name)
        archive.file(busybox, "bin/busybox")
        listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
        for applet in listed.stdout.split():
            archive.link("bin/" + applet, "busybox")
        archive.data("etc/passwd", b"root::0:0:root:/root:/bin/sh\n")
        archive.data("etc/group", b"root:x:0:\n")
        archive.data("etc/mtab", b"")
        modules = linux.modules(SYSTEM_MODULES + self.modules)
        for name, content in modules:
            archive.data(f"modules/{name}.ko", content)
        archive.data("modules/order", "".join(name + "\n" for name, _ in modules).encode())
        with open(os.path.join(FOLDER, "init.sh"), "rb") as file:
            archive.data("init", file.read(), EXECUTABLE)
        archive.data("command", self.command.encode() + b"\n")
        return archive.finished()

    def _arguments(self, image):
        arguments = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"]
        arguments += ["-display", "none", "-accel", self.accelerator]
        arguments += ["-cpu", "host" if self.accelerator.startswith("kvm") else "max"]
        backend = "q35" if self.nodes else "q35,memory-backend=memory"
        machine = ",".join([backend] + [self.machine] * bool(self.machine))
        arguments += ["-machine", machine, "-smp", str(self.processors)]
        arguments += self._memory_arguments()
        arguments += ["-kernel", image, "-initrd", self._path("initramfs")]
        arguments += ["-append", f"{KERNEL_ARGUMENTS} {self.kernel_arguments}".rstrip()]
        arguments += ["-serial", "file:" + self._path("console")]
        arguments += ["-device", "virtio-serial-pci,id=ports"]
        for name in ("output", "status"):
            arguments += ["-chardev", f"file,id={name},path={self._path(name)}"]
            arguments += ["-device", f"virtserialport,bus=ports.0,chardev={name},name=cleave.{name}"]
        arguments += ["-chardev", f"pipe,id=input,path={self._path('input')}"]
        arguments += ["-device", "virtserialport,bus=ports.0,chardev=input,name=cleave.input"]
        for number, disk in enumerate(self.disks):
            arguments += disk.arguments(number)
        return arguments + self.devices

    def _memory_arguments(self):
        memfd = "memory-backend-memfd,share=on"
        if not self.nodes:
            return ["-m", self.memory, "-object", f"{memfd},id=memory,size={self.memory}"]
        arguments = ["-m", f"{sum(self.nodes)}M"]
        for number, megabytes in enumerate(self.nodes):
            arguments += ["-object", f"{memfd},id=memory{number},size={megabytes}M"]
            processors = f",cpus=0-{self.processors - 1}" if number == 0 else ""
            arguments += ["-numa", f"node,nodeid={number},memdev=memory{number}{processors}"]
        return arguments


def accelerator():
    """KVM where a guest really boots under it, else TCG. Tried once per boot of this machine."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return TCG
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    os.makedirs(TARGET, exist_ok=True)
    known = os.path.join(TARGET, "accelerator")
    try:
        with open(known, encoding="ascii") as file:
            found = file.read().split()
        if len(found) == 2 and found[0] == boot:
            return KVM if found[1] == "kvm" else TCG
    except FileNotFoundError:
        pass
    works = _kvm_works()
    with open(known + ".new", "w", encoding="ascii") as file:
        file.write(f"{boot} {'kvm' if works else 'tcg'}\n")
    os.replace(known + ".new", known)
    return KVM if works else TCG


def _kvm_works():
    try:
        with Guest("echo works", accelerator=KVM) as guest:
            status, output = guest.run(seconds=TRIAL_SECONDS)
            return status == 0 and "works" in output
    except GuestError:
        return False

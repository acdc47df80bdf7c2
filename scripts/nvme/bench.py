"""The userspace driver beside the kernel's, in the same guest: random reads of 4 KiB, one and 32 at a time.

Two guests. In the first, how many requests a second. In the second QEMU counts instructions: its clock goes
on by a nanosecond with each, so time that is not idle is instructions, of kernel and programs together; it
writes down each doorbell; and strace counts system calls. Polls that find nothing, while the driver waits for the
emulated device, are taken off by what one of them was measured to cost. What a request costs is the difference between a
long run and a short one, divided by the requests between them: what starts and ends a program cancels out.

Printed, never judged: under software emulation seconds say little.
"""

import os
import re
import shutil
import tempfile

if __package__ == "nvme":
    from guest import Guest, GuestError
    from nvme.cluster import stripped
    from nvme.scenarios import ADDRESS, FOLDER, Controller, Namespace
else:
    from ..guest import Guest, GuestError
    from .cluster import stripped
    from .scenarios import ADDRESS, FOLDER, Controller, Namespace

DEPTHS = [1, 32]
KERNEL = ["io_uring", "libaio"]
USERSPACE = "cleave"
SECONDS = 2
# Requests of a short run and of a long one; fewer where strace stops the program at every system call.
RUNS = (500, 2500)
TRACED_RUNS = (200, 1000)
# One processor, and a nanosecond an instruction.
COUNTING = "tcg,thread=single,tb-size=256"
INSTRUCTIONS = ["-icount", "shift=0"]
DOORBELLS = ["-trace", "pci_nvme_mmio_doorbell_*"]

FUNCTIONS = f"""set -e
kernel() {{ # engine, depth, options
    fio --name=r --filename=/dev/nvme0n1 --rw=randread --bs=4k --direct=1 --ioengine=$1 --iodepth=$2 \\
        --norandommap --randrepeat=1 --output-format=terse --terse-version=3 $3
}}
cleave_bench() {{ # depth, options
    cleave nvme bench {ADDRESS} --depth $1 $2
}}
# The clock, and how long the processor was idle: nanoseconds.
look() {{
    awk '/^now at/ {{ now = $3 }} /idle_sleeptime/ {{ idle = $3 }} END {{ print now, idle }}' /proc/timer_list
}}
# Lets the test count doorbells before and after.
mark() {{ echo "MARK $1"; read -r _; }}
measured() {{ # name, command
    name=$1; shift
    mark "$name"
    before=$(look)
    "$@" >/tmp/said
    after=$(look)
    mark "$name"
    echo "TIME $name $before $after"
    sed -n 's/.* \\([0-9.]*\\) empty polls of \\([0-9]*\\) ns; \\([0-9]*\\) requests/EMPTY \\1 \\2 \\3/p' /tmp/said
}}
traced() {{ # name, command
    name=$1; shift
    strace -f -c -o /tmp/calls "$@" >/dev/null
    echo "CALLS $name $(awk '$NF == "total" {{ print $4 }}' /tmp/calls)"
}}
devices.sh hugepages 32
"""


class Bench:
    """See the module's page."""

    def run(self, programs, seconds):
        """Boots and measures; a table. Raises `GuestError` when something could not be measured."""
        with tempfile.TemporaryDirectory(prefix="nvme-") as folder:
            carried = [os.path.join(FOLDER, "devices.sh"), stripped(programs["cleave"], folder)]
            for name in ("fio", "strace"):
                path = shutil.which(name)
                if path is None:
                    raise GuestError(f"{name} is not installed: apt-get install {name}")
                carried.append(path)
            rates = self._rates(carried, folder, seconds)
            costs = self._costs(carried, folder, seconds)
        return _table(rates, costs)

    def _guest(self, command, carried, folder, **options):
        controller = Controller([Namespace(megabytes=64)])
        return Guest(
            FUNCTIONS + command.replace("TAKE", controller.take()),
            programs=carried,
            memory="768M",
            modules=controller.modules(),
            kernel_arguments=controller.kernel_arguments(),
            machine=controller.machine(),
            devices=controller.arguments(folder) + options.pop("devices", []),
            **options,
        )

    def _rates(self, carried, folder, seconds):
        """Requests a second by (who, depth)."""
        lines = []
        for engine in KERNEL:
            for depth in DEPTHS:
                timed = f"--time_based --runtime={SECONDS}"
                lines.append(f'echo "RATE {engine} {depth} $(kernel {engine} {depth} "{timed}")"')
        lines.append("TAKE")
        for depth in DEPTHS:
            options = f"--seconds {SECONDS}"
            lines.append(f'echo "RATE {USERSPACE} {depth} $(cleave_bench {depth} "{options}")"')
        with self._guest("\n".join(lines) + "\n", carried, folder) as guest:
            output = _finished(guest, *guest.run(seconds))
        rates = {}
        for who, depth, said in re.findall(r"^RATE (\S+) (\d+) (.*)$", output, re.MULTILINE):
            # Field 8 of fio's terse output is the IOPS of reads.
            found = re.search(r": (\d+) IOPS", said) if who == USERSPACE else [0, said.split(";")[7]]
            rates[who, int(depth)] = float(found[1])
        return rates

    def _costs(self, carried, folder, seconds):
        """(Instructions, doorbells, system calls) a request by (who, depth)."""
        lines = []
        for engine in KERNEL:
            for depth in DEPTHS:
                run = f"{engine} {depth}"
                for count in RUNS:
                    ios = f"--number_ios={count} --size=64m --io_size=1g"
                    lines.append(f'measured "{run} {count}" kernel {run} "{ios}"')
                for count in _traced(depth):
                    lines.append(
                        f'traced "{run} {count}" fio --name=r --filename=/dev/nvme0n1 --rw=randread '
                        f"--bs=4k --direct=1 --ioengine={engine} --iodepth={depth} --norandommap "
                        f"--number_ios={count} --size=64m --io_size=1g"
                    )
        lines.append("TAKE")
        for depth in DEPTHS:
            run = f"{USERSPACE} {depth}"
            for count in RUNS:
                lines.append(f'measured "{run} {count}" cleave_bench {depth} "--requests {count}"')
            for count in _traced(depth):
                bench = f"cleave nvme bench {ADDRESS} --depth {depth} --requests {count}"
                lines.append(f'traced "{run} {count}" {bench}')
        trace = f"{folder}/doorbells"
        with self._guest(
            "\n".join(lines) + "\n",
            carried,
            folder,
            processors=1,
            accelerator=COUNTING,
            devices=INSTRUCTIONS + DOORBELLS + ["-D", trace],
        ) as guest:
            guest.start()
            marks = []
            total = 2 * (len(KERNEL) + 1) * len(DEPTHS) * len(RUNS)
            while len(marks) < total:
                guest.until_count("MARK ", len(marks) + 1, seconds)
                marks.append(_lines(trace))
                guest.tell("go")
            output = _finished(guest, guest.wait(seconds), guest.output())
        return _per_request(output, marks)


def _traced(depth):
    """Lengths of the runs under strace. What starts a program is the same at every depth, so one short run is
    enough."""
    return TRACED_RUNS if depth == DEPTHS[0] else TRACED_RUNS[1:]


def _finished(guest, status, output):
    if status != 0:
        raise GuestError(f"exit status {status}\n{output}")
    return output


def _lines(path):
    with open(path, "rb") as file:
        return file.read().count(b"\n")


def _per_request(output, marks):
    """What a request costs, from short runs and long ones."""
    spent, rung, called = {}, {}, {}
    times = re.findall(
        r"^TIME (\S+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)$(?:\nEMPTY (\S+) (\d+) (\d+)$)?",
        output,
        re.MULTILINE,
    )
    for index, (who, depth, count, *stamps, polls, each, requests) in enumerate(times):
        before, idle_before, after, idle_after = map(int, stamps)
        run = (who, int(depth), int(count))
        spent[run] = (after - before) - (idle_after - idle_before)
        if polls:
            # What polls while it waits for an emulated device would be counted as its work.
            spent[run] -= float(polls) * int(each) * int(requests)
        rung[run] = marks[2 * index + 1] - marks[2 * index]
    for who, depth, count, calls in re.findall(
        r"^CALLS (\S+) (\d+) (\d+) (\d+)$", output, re.MULTILINE
    ):
        called[who, int(depth), int(count)] = int(calls)
    costs = {}
    for who in KERNEL + [USERSPACE]:
        for depth in DEPTHS:

            def slope(found, runs, base=depth, who=who, depth=depth):
                short, long = runs
                try:
                    difference = found[who, depth, long] - found[who, base, short]
                except KeyError:
                    raise GuestError(f"{who} at depth {depth} was not measured\n{output}") from None
                return difference / (long - short)

            costs[who, depth] = (
                slope(spent, RUNS),
                slope(rung, RUNS),
                slope(called, TRACED_RUNS, DEPTHS[0]),
            )
    return costs


def _table(rates, costs):
    lines = [
        "random reads of 4 KiB     IOPS   instructions  doorbells  system calls (the last three a request)"
    ]
    for depth in DEPTHS:
        for who in KERNEL + [USERSPACE]:
            name = "cleave nvme bench" if who == USERSPACE else f"kernel, fio {who}"
            instructions, doorbells, calls = costs[who, depth]
            lines.append(
                f"QD{depth:<3} {name:<18} {rates[who, depth]:>7.0f} {instructions:>14.0f} "
                f"{doorbells:>10.3f} {calls:>13.3f}"
            )
    return "\n".join(lines)

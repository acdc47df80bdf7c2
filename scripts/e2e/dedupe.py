"""Content that is in the pool already is not stored again: copies of an image, file systems with the same files."""

import filecmp
import os
import random
import shutil
import subprocess
import uuid

from cluster import Cluster
from framework import Failure, check, on_demand, scenario, until
from pool import Pool

MIB = 1 << 20
BLOCK = 4096
# Where files to be stored come from, on any machine that runs this; and how much of them is taken.
LIBRARIES = "/usr/lib"
TREE = 160 * MIB
# Beside the files' own blocks a file system has room for its tables, and some to spare.
SPARE = 96 * MIB


class Copies:
    """Images that go into vdisks, one after the other, and what each adds to the pool."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.pool = Pool(cluster)
        self._stripe = 0

    def committed(self):
        """Bytes of slots that committed stripes have, parity included."""
        pool = self.pool.status()
        return pool["space"]["used"] - pool["reserved"]

    def _copy(self, image, name, request_size):
        self.cluster.cleave("vdisk", "create", name, str(os.path.getsize(image)))
        self.cluster.until_status_ready()
        program = self.cluster.context.options.program("cleave-perf")
        line = [program, "copy", image, self.cluster.socket(name), "--block", str(request_size)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        check(done.returncode == 0, f"cleave-perf copy: {done.stderr}")

    def ratio(self):
        """Blocks that went into the pool so far, for each that took room there."""
        now = self.pool.figures()
        return (now["frames"] + now["recognised"]) / max(now["frames"], 1)

    def add(self, image, name, request_size=None, seconds=300):
        """Imports, or copies by requests of one size, and waits until all but the last stripe's content is in the
        pool; what that took, and was."""
        used, before = self.committed(), self.pool.figures()
        if request_size is None:
            self.cluster.cleave("import", image, name, "--quiet")
        else:
            self._copy(image, name, request_size)
        stripe = self.pool.status()["stripes"]["data_shards"] * MIB

        def blocks():
            now = self.pool.figures()
            return {key: now[key] - before[key] for key in now}

        def stored():
            now = blocks()
            waits = now["written"] - now["zeros"] - now["recognised"] - now["frames"]
            return waits * now["bytes_out"] <= now["written"] * (stripe + MIB)

        until(stored, seconds, lambda: f"destage does not come to an end: {blocks()}")
        return self.committed() - used, blocks()


def _random_image(path, size):
    """Content that nothing compresses, and no block of which is there twice."""
    generator = random.Random(size)
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(generator.randbytes(MIB))


@scenario
def a_second_copy_costs_next_to_nothing(context):
    """Two copies of an image cost at most 1.05 of one, by large and small requests; the copy is read from flash."""
    image, size = context.path("image"), 384 * MIB
    _random_image(image, size)
    cluster = Cluster(context)
    cluster.start()
    copies = Copies(cluster)
    first, blocks = copies.add(image, "first")
    check(blocks["recognised"] == 0, f"{blocks}")
    print(f"  one copy of {size // MIB} MiB of random content takes {first // MIB} MiB of the pool, parity included")
    for name, request_size in (("large", 64 << 10), ("small", 4 << 10)):
        cost, blocks = copies.add(image, name, request_size)
        print(
            f"  one more, written in requests of {request_size >> 10} KiB: {cost // MIB} MiB, {cost / first:.3f} of the "
            f"first; {blocks['recognised']} of {size // BLOCK} blocks were known, dedupe ratio so far {copies.ratio():.2f}"
        )
        check(cost <= first * 0.05, f"a copy costs {cost} bytes beside {first}")
        check(blocks["recognised"] > size // BLOCK * 9 // 10, f"{blocks}")
    print(
        "  (the size of requests does not matter: what is compared is each 4 KiB of the vdisk; less than a stripe's\n"
        "  content waits in the log at each end)"
    )

    # Nobody has read a copy: what serves it is what the first one left in flash.
    for name in ("large", "small"):
        back = context.path(name)
        before = cluster.stats()["hosts"][0]["reads"]
        cluster.cleave("export", name, back, "--quiet")
        reads = cluster.stats()["hosts"][0]["reads"]
        flash, pool = reads["flash"] - before["flash"], reads["pool"] - before["pool"]
        check(filecmp.cmp(image, back, shallow=False), f"{name} has other content")
        print(f"  the first read of `{name}`: {flash} blocks from flash, {pool} from the pool")
        check(flash > size // BLOCK * 9 // 10 and pool * 100 < flash, f"{flash} and {pool}")
        os.unlink(back)
    cluster.stop()


def _some_files(limit):
    """Files below the machine's libraries, in the same order anywhere, of so many bytes together."""
    found, total = [], 0
    for folder, folders, names in os.walk(LIBRARIES):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            size = os.path.getsize(path)
            if 0 < size <= 16 * MIB and total + size <= limit:
                found.append(path)
                total += size
    return found


def _tree(folder, files):
    """A tree of copies, made in this order."""
    for path in files:
        target = os.path.join(folder, os.path.relpath(path, LIBRARIES))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copyfile(path, target)


def _file_system(path, tree, size, block, arguments=()):
    """An ext4 file system of its own identity that holds the tree."""
    with open(path, "wb") as file:
        file.truncate(size)
    line = ["mkfs.ext4", "-q", "-F", "-b", str(block), "-U", str(uuid.uuid4()), "-d", tree, *arguments, path]
    made = subprocess.run(line, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise Failure(f"mkfs.ext4: {made.stderr}")


def _compare(copies, images):
    """Imports file systems that hold the same; reports, and returns what the second one cost of the first."""
    costs = []
    for name, image in images:
        cost, blocks = copies.add(image, name)
        content = blocks["written"] - blocks["zeros"]
        stored = blocks["recognised"] + blocks["frames"]
        costs.append((cost, blocks["recognised"] / max(stored, 1)))
        print(
            f"  {name}: {content} blocks that are not zeros, of {stored} in the pool {blocks['recognised']} were "
            f"known: dedupe ratio so far {copies.ratio():.2f}; {cost // MIB} MiB of slots"
        )
    return costs


@scenario
def file_systems_with_the_same_files_share_them(context):
    """File systems that were built separately from the same files, in another order, share the files' blocks."""
    files = _some_files(TREE)
    shuffled = sorted(files, key=lambda path: path[::-1])
    check(len(files) > 50, f"{LIBRARIES} holds too little")
    one, two = context.path("one"), context.path("two")
    _tree(one, files)
    _tree(two, shuffled)
    with open(os.path.join(two, "a-file-of-its-own"), "wb") as file:
        file.write(random.Random(1).randbytes(5000))
    content = sum(os.path.getsize(path) for path in files)
    size = (content + SPARE) // MIB * MIB
    images = [(name, context.path(f"{name}.img")) for name in ("first", "second", "unaligned")]
    _file_system(images[0][1], one, size, BLOCK)
    _file_system(images[1][1], two, size, BLOCK)
    _file_system(images[2][1], two, size, 1024)
    shutil.rmtree(one)
    shutil.rmtree(two)
    # Narrow stripes: less of so little content waits for a full one.
    cluster = Cluster(context, arguments=["--drives", "4"])
    cluster.start()
    print(f"  ext4 with the same {len(files)} files, {content // MIB} MiB")
    costs = _compare(Copies(cluster), images)
    print(
        "  (a file's content begins at a block of its file system: with blocks of 4 KiB every 4 KiB of a file is found\n"
        "  again wherever the file lies, and only tables differ; with blocks of 1 KiB files begin anywhere, and what\n"
        "  is found is what happens to be aligned alike)"
    )
    (first, _), (second, known), (_, _) = costs
    check(known > 0.8, f"{known:.2f} of the second one's blocks were known")
    check(second * 4 < first, f"the second one costs {second} bytes beside {first}")
    cluster.stop()


@on_demand
def debian_roots_share_their_files(context):
    """Two Debian roots, each built by debootstrap from the machine's own package source (needs root, and minutes)."""
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    check(targets, "apt has no package source")
    source, name = targets[0].split()
    images = []
    for number in (1, 2):
        root = context.path(f"root-{number}")
        line = ["debootstrap", "--variant=minbase", name, root, source]
        with open(context.path(f"root-{number}.log"), "wb") as log:
            built = subprocess.run(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
        check(built.returncode == 0, f"debootstrap ended with {built.returncode}: {context.path(f'root-{number}.log')}")
        image = context.path(f"root-{number}.img")
        _file_system(image, root, 1024 * MIB, BLOCK)
        shutil.rmtree(root)
        images.append((f"root-{number}", image))
    cluster = Cluster(context)
    cluster.start()
    (first, _), (second, known) = _compare(Copies(cluster), images)
    print(f"  the second root costs {second / first:.3f} of the first; {known * 100:.1f} % of its blocks were known")
    check(known > 0.8 and second * 2 < first, f"{second} bytes beside {first}")
    cluster.stop()

"""What must be refused: one clear line each, a non-zero exit, and nothing lost."""

import os
import shutil
import subprocess

from cluster import Cluster
from framework import check, scenario
from verifier import Verifier

SMALL = ["--drives", "4", "--drive-size", "1G", "--log-size", "64M", "--host-memory", "256M"]


@scenario
def refused_starts_lose_nothing(context):
    """Wrong keys, drives and directories are refused; afterwards all data is there."""
    cluster = Cluster(context, arguments=SMALL)
    cluster.start("--encrypt", "--vdisk", "data:256M")
    saved = context.path("saved")
    Verifier(context, cluster, "data", 64 << 20, ["--save", saved]).finish(300)

    line = cluster.refused()
    check(f"in use by process {cluster.process.pid}" in line, line)
    cluster.stop()

    key = os.path.join(cluster.dir, "keys", "data.key")
    kept = context.path("key")
    shutil.copy2(key, kept)
    os.chmod(key, 0o644)
    check("chmod 600" in cluster.refused(), "a key that others may read")
    os.chmod(key, 0o600)
    with open(key, "w", encoding="ascii") as file:
        file.write("0" * 64)
    check("is not the key of" in cluster.refused(), "a wrong key")
    os.remove(key)
    check("does not exist" in cluster.refused(), "a missing key")
    line = cluster.refused("--key-file", context.path("none"))
    check("does not exist" in line, line)
    shutil.copy2(kept, key)

    other = Cluster(context, "o", SMALL)
    other.start()
    other.stop()
    own = context.path("drive")
    shutil.move(cluster.drive(1), own)
    _copy(other.drive(1), cluster.drive(1))
    check("another cluster" in cluster.refused(), "a drive of another cluster")
    _copy(own, cluster.drive(1))
    with open(cluster.drive(1), "r+b") as file:
        for copy in range(2):
            file.seek(copy * 4096 + 60)
            file.write(b"\xff" * 8)
    check("corrupt" in cluster.refused(), "a corrupt superblock")
    os.remove(cluster.drive(1))
    shutil.move(own, cluster.drive(1))
    check("--drives 5" in _otherwise(context, cluster, "--drives", "5"), "other drives")

    cluster.start()
    Verifier(context, cluster, "data", 0, ["--load", saved]).finish(300)
    cluster.stop()


def _copy(source, target):
    subprocess.run(["cp", "--sparse=always", source, target], check=True)


def _otherwise(context, cluster, *options):
    again = Cluster(context, os.path.basename(cluster.dir))
    return again.refused(*options)


@scenario
def unknown_options_and_long_paths_are_refused(context):
    """The command line and the length of socket paths are checked before anything is made."""
    program = context.options.program("cleave")
    done = subprocess.run([program, "dev", "--nonsense"], capture_output=True, text=True, check=False)
    check(done.returncode == 2 and "--nonsense" in done.stderr, done.stderr)
    cluster = Cluster(context, "d" * 110)
    check("shorter directory" in cluster.refused(), "a long path")
    cluster = Cluster(context)
    line = cluster.refused("--key-file", "/nonexistent", "--encrypt")
    check("does not exist" in line, line)
    check(not os.path.exists(os.path.join(cluster.dir, "dev.toml")), "a cluster was made")
    line = cluster.cleave_fails("status")
    check("is the cluster running?" in line, line)


@scenario
def a_full_disk_is_refused(context):
    """Without room for the vaults nothing is started."""
    if os.geteuid() != 0:
        print("e2e: mounting a small file system needs root; this scenario does not look further")
        return
    small = context.path("small")
    os.mkdir(small)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "small", small], check=True)
    context.at_end(lambda: subprocess.run(["umount", "-l", small], check=True))
    cluster = Cluster(context, "small/c")
    check("free some space" in cluster.refused(), "a full disk")

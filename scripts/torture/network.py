"""Network namespaces, one for each part, joined by a bridge in a namespace of its own, and what is done to
the links between them: cuts and losses by nftables where packets arrive, slowness by traffic control.

Both count the packets that they met, so that a run knows that its faults were none in name only.

Nothing of it is outside of the namespaces, so several runs do not meet, and what a run leaves behind when
it is killed is the empty namespaces, whose names begin with `cleave-`.
"""

import json
import os
import subprocess

from framework import Failure, check

SUBNET = "10.77.0"
TOOLS = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables", "nsenter": "util-linux"}
# A link of this speed makes queues of a quarter of a second of what is torture's usual load.
SLOW_RATE = "24mbit"
SLOW_LATENCY = "250ms"
NETEM_DELAY = ["delay", "30ms", "20ms"]


class Network:
    """Namespaces of these names."""

    def __init__(self, context, names):
        missing = {package for tool, package in TOOLS.items() if not _is_there(tool)}
        check(not missing, f"not installed: {', '.join(sorted(missing))}")
        check(os.geteuid() == 0, "network namespaces need root")
        # The id of the process: runs at the same time differ.
        self._prefix = f"cleave-{os.getpid()}-"
        self._names = list(names)
        # What is dropped where it arrives: (at, from) -> percent.
        self._dropped = {}
        # Packets that were dropped there since, as far as they were looked at.
        self._met = {}
        self._hub = self._prefix + "hub"
        self._made = []
        context.at_end(self.destroy)
        self._add(self._hub)
        _run("ip", "-n", self._hub, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", self._hub, "link", "set", "br0", "up")
        for number, name in enumerate(self._names):
            space, port = self.namespace(name), f"p{number}"
            self._add(space)
            _run("ip", "-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self._hub)
            _run("ip", "-n", self._hub, "link", "set", port, "master", "br0", "up")
            _run("ip", "-n", space, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", space, "link", "set", device, "up")
            self._rules(name)
        self.slowness = self._how_to_slow()

    def _add(self, space):
        _run("ip", "netns", "add", space)
        self._made.append(space)

    def destroy(self):
        """Removes everything. Processes in the namespaces go on without a network."""
        for space in self._made:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
        self._made = []

    def namespace(self, name):
        """The namespace of a part."""
        return self._prefix + name

    def address(self, name):
        """The address of a part."""
        return f"{SUBNET}.{self._names.index(name) + 1}"

    def inside(self, name, line):
        """The command that runs a command in a part's namespace, as the same process."""
        return ["nsenter", f"--net=/run/netns/{self.namespace(name)}", *line]

    # Faults.

    def drop(self, at, source, percent=100):
        """Of what comes from `source`, this much does not arrive at `at`."""
        self._collect(at)
        self._dropped[at, source] = percent
        self._rules(at)

    def undrop(self, at, source):
        """Undoes `drop`; how many packets were dropped."""
        self._collect(at)
        self._dropped.pop((at, source), None)
        self._rules(at)
        return self._met.pop((at, source), 0)

    def slow(self, name):
        """What a part sends takes long."""
        _run("tc", "-n", self.namespace(name), "qdisc", "replace", "dev", "eth0", "root", *self.slowness)

    def unslow(self, name):
        """Undoes `slow`; how many packets went through it."""
        told = _run("tc", "-s", "-j", "-n", self.namespace(name), "qdisc", "show", "dev", "eth0")
        _run("tc", "-n", self.namespace(name), "qdisc", "del", "dev", "eth0", "root")
        return sum(one["packets"] for one in json.loads(told) if one["kind"] == self.slowness[0])

    def _collect(self, at):
        """Takes what the rules of a part have counted: new rules begin at 0."""
        told = _run("nft", "-j", "list", "table", "inet", "torture", space=self.namespace(at))
        for one in json.loads(told)["nftables"]:
            rule = one.get("rule", {})
            for expression in rule.get("expr", []):
                if "counter" in expression:
                    link = (at, rule["comment"])
                    self._met[link] = self._met.get(link, 0) + expression["counter"]["packets"]

    def _rules(self, at):
        rules = ["table inet torture", "delete table inet torture", "table inet torture {", "chain arriving {"]
        rules.append("type filter hook input priority 0;")
        for (where, source), percent in sorted(self._dropped.items()):
            if where == at:
                chance = "" if percent == 100 else f"numgen random mod 100 < {percent} "
                rules.append(f'ip saddr {self.address(source)} {chance}counter drop comment "{source}"')
        rules += ["}", "}"]
        _run("nft", "-f", "-", space=self.namespace(at), text="\n".join(rules) + "\n")

    def _how_to_slow(self):
        """Delay where the kernel can, else a narrow link with a long queue."""
        space = self.namespace(self._names[0])
        netem = ["netem", *NETEM_DELAY]
        line = ["tc", "-n", space, "qdisc", "replace", "dev", "eth0", "root", *netem]
        if subprocess.run(line, capture_output=True, check=False).returncode == 0:
            _run("tc", "-n", space, "qdisc", "del", "dev", "eth0", "root")
            return netem
        return ["tbf", "rate", SLOW_RATE, "burst", "16k", "latency", SLOW_LATENCY]


def _is_there(tool):
    return any(os.access(os.path.join(folder, tool), os.X_OK) for folder in _path().split(":"))


def _path():
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _run(*line, space=None, text=None):
    if space is not None:
        line = ("nsenter", f"--net=/run/netns/{space}", *line)
    environment = dict(os.environ, PATH=_path())
    done = subprocess.run(line, input=text, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise Failure(f"{' '.join(line)} {text or ''}: {done.stderr.strip()}")
    return done.stdout

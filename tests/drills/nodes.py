"""Two machines in one: each node has processes, a host name, an address and an ssh server of its own.

A node is a set of Linux namespaces that live as long as one process. Killing that one kills all processes of the node
at once, as a power cut does, and nothing is left of the node: no mount, interface or process outlives it. Nodes share
the machine's files, as the nodes of a cluster share a file system. Their cables meet in a switch, a third namespace.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("unshare", "nsenter", "setpriv", "ip", "mount", "hostname")  # util-linux, iproute2, hostname
SSH_TOOLS = ("sshd", "ssh-keygen", "ssh", "pdsh")
_NAMESPACES = ("--net", "--uts", "--ipc", "--pid", "--mount", "--mount-proc")
# The first process of a node; it also buries those that lose their parent.
_FIRST = ("sh", "-c", "while :; do sleep 60; done")
_SSHD = "HostKey {0}/key\nAuthorizedKeysFile {0}/key.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
_SSH = "IdentityFile {0}/key\nUserKnownHostsFile /dev/null\nStrictHostKeyChecking no\nLogLevel ERROR\n"


class NoNodes(Exception):
    """Why this machine cannot have nodes."""


def missing(tools: Sequence[str]) -> list[str]:
    """The programs that are not installed."""
    return [tool for tool in tools if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None]


@dataclass(frozen=True)
class Job:
    """A command under way on a node. process: ends with it, and with its exit code."""

    process: subprocess.Popen[bytes]
    log: Path

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command itself."""
        os.kill(_only_child(self.process.pid), number)

    def wait(self, seconds: float) -> int:
        """The exit code, as a shell gives it."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {seconds} s:\n{self.text()[-3000:]}") from None

    def text(self) -> str:
        """What it has told so far."""
        return self.log.read_text(errors="replace")

    def errors(self) -> list[str]:
        """What our program has told as errors, without the name of the node that pdsh puts before a line."""
        return re.findall(r"^(?:node-\d: )?error: (.*)", self.text(), re.MULTILINE)


class Node:
    """One machine of the cluster."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        # Whatever becomes of the tests: they gone, so is the node.
        hold = ["setpriv", "--pdeathsig", "KILL", "unshare", *_NAMESPACES, "--fork", "--kill-child", *_FIRST]
        self._holder = subprocess.Popen(hold, stderr=subprocess.PIPE, text=True)
        self.pid = _only_child(self._holder.pid)
        self.run("hostname", name)
        self.run("ip", "link", "set", "lo", "up")
        for path in ("/dev/shm", "/run"):
            self.run("mount", "-t", "tmpfs", "tmpfs", path)

    def start(self, words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Job:
        """Start a command on the node, in the working directory of the tests."""
        with open(log, "ab") as file:
            process = subprocess.Popen(
                [*self._enter(), "env", f"--chdir={os.getcwd()}", *words],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment,
            )  # fmt: skip
        return Job(process, log)

    def run(self, *words: str) -> None:
        """Run a command on the node to its end."""
        _run(*self._enter(), *words)

    def count(self, program: str) -> int:
        """How many processes of the node have ``program`` in their command line."""
        mine, found = os.readlink(f"/proc/{self.pid}/ns/pid"), 0
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                found += os.readlink(entry / "ns/pid") == mine and program in (entry / "cmdline").read_text().replace(
                    "\0", " "
                )
            except OSError:  # has ended meanwhile
                continue
        return found

    def kill(self) -> None:
        """Kill all of its processes at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._holder.wait()

    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self.pid), "--all"]


class Cluster:
    """Two nodes and the switch between them."""

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0:
            raise NoNodes("needs root, for network namespaces")
        if absent := missing(TOOLS):
            raise NoNodes(f"needs {', '.join(absent)}")
        self._folder = folder
        self._made: list[Node] = []
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        self._switch = self._node("switch", "")
        self._ip("link", "add", "switch", "type", "bridge")
        self._ip("link", "set", "switch", "up")
        self.nodes = [self._node(f"node-{n}", f"10.77.0.{n}") for n in (1, 2)]
        hosts = self._folder / "hosts"
        known = {"localhost": "127.0.0.1", **{n.name: n.address for n in self.nodes}, "node-3": "10.77.0.3"}
        hosts.write_text("".join(f"{address} {name}\n" for name, address in known.items()))  # there is no node-3
        for node in self.nodes:
            cable = ["type", "veth", "peer", "eth0", "netns", str(node.pid)]
            self._ip("link", "add", node.name, "master", "switch", *cable)
            self._ip("link", "set", node.name, "up")
            node.run("ip", "address", "add", f"{node.address}/24", "dev", "eth0")
            node.run("ip", "link", "set", "eth0", "up")
            node.run("mount", "--bind", str(hosts), "/etc/hosts")
            node.run("mount", "--bind", "/dev/null", "/etc/resolv.conf")  # no name server: do not wait for one

    def cable(self, node: Node, state: str) -> None:
        """Plug the cable of a node into the switch ("up") or pull it out ("down"): nobody is told."""
        self._ip("link", "set", node.name, state)

    def start_ssh(self) -> None:
        """Let root of one node into the other."""
        if absent := missing(SSH_TOOLS):
            raise NoNodes(f"needs {', '.join(absent)}")
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / "key"))
        server, client = self._folder / "sshd_config", self._folder / "ssh_config"
        server.write_text(_SSHD.format(self._folder))
        client.write_text(_SSH.format(self._folder))
        for node in self.nodes:
            node.run("mkdir", "/run/sshd")
            node.run("mount", "--bind", str(client), "/etc/ssh/ssh_config")
            node.run("/usr/sbin/sshd", "-f", str(server))

    def close(self) -> None:
        """End both nodes and the switch, with all that runs on them."""
        for node in self._made:
            node.kill()

    def _node(self, name: str, address: str) -> Node:
        node = Node(name, address)
        self._made.append(node)
        return node

    def _ip(self, *words: str) -> None:
        _run("nsenter", "--target", str(self._switch.pid), "--net", "ip", *words)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNodes(f"{' '.join(words)}: {done.stderr.strip()}")


def _only_child(pid: int) -> int:
    deadline = time.monotonic() + 5
    while True:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            children = []
        if children:
            return int(children[0])
        if time.monotonic() > deadline:
            raise NoNodes("namespaces cannot be made on this machine")
        time.sleep(0.01)

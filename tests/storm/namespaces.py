"""A network of namespaces on one bridge: each node has an address of its own, and any direction can be cut.

Directions are cut at the sender, by a permanent neighbour entry that names hardware which does not exist:
the bridge delivers such frames to nobody. It looks like loss to both sides, it is asymmetric where wanted,
and it takes nothing but ``ip``. Needs root.

Everything is named after this process. A guard process removes it all when this process ends, however it
ends; ``sweep`` also ends what still runs in the namespaces.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_NOWHERE = "02:00:00:00:00:ff"


class Namespaces:
    """``count`` nodes, numbered from 0. Made by ``namespaces``."""

    def __init__(self, count: int, owner: int) -> None:
        self.count = count
        self._prefix = _prefix(owner)
        self._net = f"10.213.{owner % 250}"

    def address(self, node: int) -> str:
        return f"{self._net}.{node + 1}"

    def command(self, node: int) -> list[str]:
        """Prefix of a command line that is to run there."""
        return [_ip(), "netns", "exec", self._name(node)]

    def build(self) -> None:
        bridge = f"{self._prefix}b"
        _batch([f"link add {bridge} type bridge", f"link set {bridge} up"])
        for node in range(self.count):
            name, inside = self._name(node), f"{self._prefix}v{node}"
            _batch(
                [
                    f"netns add {name}",
                    f"link add {name} type veth peer name {inside}",
                    f"link set {name} master {bridge} up",
                    f"link set {inside} address {_hardware(node)} netns {name}",
                ]
            )
            own = [
                f"addr add {self.address(node)}/24 dev {inside}",
                f"link set {inside} up",
                "link set lo up",
            ]
            _batch(own, name)
        self.heal()

    def cut(self, source: int, targets: Iterable[int]) -> None:
        """Nothing that ``source`` sends arrives at ``targets``."""
        self._reach(source, targets, lambda _: _NOWHERE)

    def partition(self, side: Collection[int]) -> None:
        """Nothing passes between ``side`` and the others."""
        for node in range(self.count):
            self.cut(node, [other for other in range(self.count) if (other in side) != (node in side)])

    def heal(self) -> None:
        """All reach all."""
        for node in range(self.count):
            self._reach(node, [other for other in range(self.count) if other != node], _hardware)

    def _reach(self, source: int, targets: Iterable[int], hardware: Callable[[int], str]) -> None:
        inside = f"{self._prefix}v{source}"
        lines = [
            f"neigh replace {self.address(node)} lladdr {hardware(node)} dev {inside} nud permanent"
            for node in targets
        ]
        if lines:
            _batch(lines, self._name(source))

    def _name(self, node: int) -> str:
        return f"{self._prefix}{node}"


@contextmanager
def namespaces(count: int) -> Iterator[Namespaces]:
    """The network, and nothing left of it afterwards, even if this process is killed."""
    sweep()
    owner = os.getpid()
    guard = subprocess.Popen(
        [sys.executable, "-m", "tests.storm.namespaces", str(owner)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert guard.stdin is not None
    try:
        network = Namespaces(count, owner)
        network.build()
        yield network
    finally:
        guard.stdin.close()
        guard.wait()


def why_no_namespaces() -> str | None:
    """Why there can be none here; None: there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip", path=_PATH) is None:
        return "ip is not installed (Debian: iproute2)"
    probe = f"{_prefix(os.getpid())}p"
    made = subprocess.run([_ip(), "netns", "add", probe], check=False, capture_output=True, text=True)
    if made.returncode != 0:
        return f"no network namespace can be made here: {made.stderr.strip()}"
    subprocess.run([_ip(), "netns", "delete", probe], check=True)
    return None


def sweep(owner: int | None = None) -> None:
    """Remove the networks of owners that are gone, or that of ``owner``, with what runs in them."""
    for name in _names(["netns", "list"]):
        if _is_left_by(name, owner):
            for pid in _names(["netns", "pids", name]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run([_ip(), "netns", "delete", name], check=True)
    for name in re.findall(r"^\d+: (slt[^:@]+)", _say(["link", "show"]), re.MULTILINE):
        if _is_left_by(name, owner):
            # One that lost its other end to a namespace is gone already.
            subprocess.run([_ip(), "link", "delete", name], check=False, capture_output=True)


def _is_left_by(name: str, owner: int | None) -> bool:
    found = re.fullmatch(r"slt(\d+)-\w+", name)
    if found is None:
        return False
    pid = int(found[1])
    return pid == owner if owner is not None else not Path(f"/proc/{pid}").exists()


def _prefix(owner: int) -> str:
    return f"slt{owner}-"


def _hardware(node: int) -> str:
    return f"02:00:00:00:00:{node + 1:02x}"


def _ip() -> str:
    found = shutil.which("ip", path=_PATH)
    assert found is not None, "ip is not installed"
    return found


def _say(arguments: list[str]) -> str:
    return subprocess.run([_ip(), *arguments], check=True, capture_output=True, text=True).stdout


def _names(arguments: list[str]) -> list[str]:
    return [line.split()[0] for line in _say(arguments).splitlines() if line.strip()]


def _batch(lines: list[str], namespace: str = "") -> None:
    where = ["-netns", namespace] if namespace else []
    text = "\n".join(lines) + "\n"
    subprocess.run([_ip(), *where, "-batch", "-"], input=text, check=True, capture_output=True, text=True)


if __name__ == "__main__":
    sys.stdin.read()  # until the owner's end of the pipe is closed, by it or by its death
    sweep(int(sys.argv[1]))

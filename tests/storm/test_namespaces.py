"""The network that the storm runs on: cut where told, nothing left afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.live import missing
from tests.storm.namespaces import Namespaces, namespaces, sweep, why_no_namespaces
from tests.waiting import until

PING = "import socket,sys; socket.create_connection((sys.argv[1], 7), timeout=2)"
OWNER = """
import sys, time
from tests.storm.namespaces import namespaces
with namespaces(2) as network:
    import subprocess
    subprocess.Popen([*network.command(0), "sleep", "600"])
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def needed() -> None:
    reason = why_no_namespaces()
    if reason is not None:
        missing(reason)


def answers(network: Namespaces, source: int, target: int) -> bool:
    """A refused connection is an answer, silence is none."""
    command = [*network.command(source), sys.executable, "-c", PING, network.address(target)]
    said = subprocess.run(command, check=False, capture_output=True, text=True)
    assert said.returncode == 1
    return "ConnectionRefusedError" in said.stderr


@pytest.mark.slow
def test_directions_are_cut_and_healed() -> None:
    with namespaces(3) as network:
        assert answers(network, 0, 1)
        network.partition({0})
        assert not answers(network, 0, 1)
        assert not answers(network, 2, 0)
        assert answers(network, 1, 2)
        network.heal()
        network.cut(0, [1])
        assert not answers(network, 1, 0), "the answer is what gets lost"
        assert answers(network, 0, 2)
        network.heal()
        assert answers(network, 0, 1)


def test_nothing_is_left_of_an_owner_that_was_killed() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        assert owner.stdout.readline() == "up\n"
        prefix = f"slt{owner.pid}-"
        assert prefix in listed()
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
    until(lambda: prefix not in listed(), "the guard removes the network")
    sweep()


def listed() -> str:
    """Namespaces and links of this machine."""
    commands = (["ip", "netns", "list"], ["ip", "link", "show"])
    environment = os.environ | {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    said = [subprocess.run(one, check=True, capture_output=True, env=environment).stdout for one in commands]
    return b"".join(said).decode()

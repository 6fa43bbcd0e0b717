"""Members in processes of their own on loopback: killed, stopped, flooded, rotated."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sllmd.core.ids import NodeId
from sllmd.wire.addresses import split_address
from sllmd.wire.seal import Keyring
from tests.cluster.crowd import introduce
from tests.waiting import PATIENCE_SECONDS

KEY, NEW_KEY = bytes(range(32)).hex(), bytes(32).hex()
QUICK = {
    "probe_seconds": 0.3,
    "probe_timeout_seconds": 0.15,
    "gossip_seconds": 0.05,
    "dead_ping_seconds": 0.5,
}
"""Three times as fast as a cluster's own: the rules are the same."""
PATIENT = {"probe_seconds": 3.0, "probe_timeout_seconds": 1.5, "suspicion_multiplier": 8.0}
"""Where nobody may be suspected, or believed dead, because the machine is busy."""


class Process:
    """One member, and what it said."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, log: Path) -> None:
        self.log = log
        self.process = process
        self.name = name
        self.address = ""
        self.heard: list[dict[str, Any]] = []

    async def hear(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next thing it says that fits."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                line = await self.process.stdout.readline()
                assert line, f"{self.name} ended:\n{self.log.read_text(encoding='utf-8')}"
                self.heard.append(json.loads(line))
                if fits(self.heard[-1]):
                    return self.heard[-1]

    async def sees(self, name: str, status: str) -> dict[str, Any]:
        return await self.hear(lambda said: said.get("name") == name and said.get("status") == status)

    async def do(self, what: str, **fields: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": what, **fields}).encode() + b"\n")
        return await self.hear(lambda said: said["what"] == "done")

    async def until_members(self, expected: dict[str, str]) -> dict[str, Any]:
        """Ask again after every change, until it sees just these."""
        while True:
            done = await self.do("members")
            if {name: member["status"] for name, member in done["members"].items()} == expected:
                return done
            await self.hear(lambda said: said["what"] == "change")


MakeProcess = Callable[..., Awaitable[Process]]


@pytest.fixture
async def make_process(tmp_path: Path) -> AsyncIterator[MakeProcess]:
    made: list[Process] = []

    async def make(name: str, *, join: Sequence[Process] = (), **given: Any) -> Process:
        addresses = [other.address for other in join]
        options = {"name": name, "keys": [KEY], "settings": QUICK, "join": addresses, **given}
        path = tmp_path / f"{len(made)}.log"
        log = path.open("wb")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.cluster.gossiping_process", json.dumps(options),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
        )  # fmt: skip
        log.close()
        one = Process(process, name, path)
        made.append(one)
        one.address = (await one.hear(lambda said: said["what"] == "started"))["address"]
        if join:
            await one.hear(lambda said: said["what"] == "joined")
        return one

    yield make
    for one in made:
        with contextlib.suppress(ProcessLookupError):
            one.process.kill()
        await one.process.wait()


async def cluster(make_process: MakeProcess, *names: str, **given: Any) -> list[Process]:
    first = await make_process(names[0], **given)
    members = [first, *[await make_process(name, join=[first], **given) for name in names[1:]]]
    for member in members:
        await member.until_members(dict.fromkeys(names, "ALIVE"))
    return members


@pytest.mark.slow
async def test_kill_9_makes_a_suspect_and_then_a_dead_member(make_process: MakeProcess) -> None:
    one, two, three, four = await cluster(make_process, "one", "two", "three", "four")
    four.process.kill()
    for member in (one, two, three):
        suspect = await member.sees("four", "SUSPECT")
        assert set(suspect["suspected_by"]) <= {"one", "two", "three"}
        assert suspect["suspected_by"]
        await member.sees("four", "DEAD")
    await one.until_members({**dict.fromkeys(("one", "two", "three"), "ALIVE"), "four": "DEAD"})


@pytest.mark.slow
async def test_a_killed_member_that_starts_again_is_alive_again(make_process: MakeProcess) -> None:
    one, _, three = await cluster(make_process, "one", "two", "three")
    port = split_address(three.address)[1]
    three.process.kill()
    await three.process.wait()
    again = await make_process("three", join=[one], port=port)
    assert again.address == three.address
    done = await one.until_members(dict.fromkeys(("one", "two", "three"), "ALIVE"))
    await again.until_members(dict.fromkeys(("one", "two", "three"), "ALIVE"))
    assert done["members"]["three"]["incarnation"] >= 0


@pytest.mark.slow
async def test_who_leaves_has_left_and_is_never_suspected(make_process: MakeProcess) -> None:
    one, two, three = await cluster(make_process, "one", "two", "three", settings=PATIENT)
    await three.do("leave")
    for member in (one, two):
        await member.sees("three", "LEFT")
        assert "SUSPECT" not in {said.get("status") for said in member.heard if said.get("name") == "three"}


@pytest.mark.slow
async def test_a_stopped_member_is_suspected_refutes_and_blames_nobody(make_process: MakeProcess) -> None:
    """SIGSTOP as long as a garbage collection of somebody else's, then SIGCONT."""
    one, two, three, four = await cluster(make_process, "one", "two", "three", "four", settings=PATIENT)
    before = (await four.do("members"))["members"]["four"]["incarnation"]
    os.kill(four.process.pid, signal.SIGSTOP)
    await one.sees("four", "SUSPECT")
    os.kill(four.process.pid, signal.SIGCONT)
    await one.sees("four", "ALIVE")
    for member in (one, two, three, four):
        done = await member.until_members(dict.fromkeys(("one", "two", "three", "four"), "ALIVE"))
        assert done["members"]["four"]["incarnation"] > before
        assert "DEAD" not in {said.get("status") for said in member.heard}
    assert not [said for said in four.heard if said.get("status") == "SUSPECT"], "it had no right to"


@pytest.mark.slow
async def test_one_stopped_until_it_is_dead_comes_back(make_process: MakeProcess) -> None:
    one, _, three = await cluster(make_process, "one", "two", "three")
    os.kill(three.process.pid, signal.SIGSTOP)
    await one.sees("three", "DEAD")
    os.kill(three.process.pid, signal.SIGCONT)
    await one.sees("three", "ALIVE")


@pytest.mark.slow
async def test_a_flood_of_garbage_disturbs_nobody(make_process: MakeProcess) -> None:
    one, two, three = await cluster(make_process, "one", "two", "three", settings=PATIENT)
    target = split_address(one.address)
    packets = [os.urandom(size) for size in (0, 1, 48, 49, 200, 1400, 1401, 9000)]
    packets += [b"\x01" + os.urandom(1000), b"\x00" * 1400, b"GET / HTTP/1.1\r\n\r\n"]

    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(2000):
                for packet in packets:
                    with contextlib.suppress(OSError):
                        stranger.sendto(packet, target)

    await asyncio.to_thread(flood)
    for _ in range(20):
        reader, writer = await asyncio.open_connection(*target)
        writer.write(os.urandom(2000))
        with contextlib.suppress(OSError):
            await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)
        writer.close()
    await two.do("tell", epoch=7)
    await one.until_members(dict.fromkeys(("one", "two", "three"), "ALIVE"))
    for member in (one, two, three):
        while (done := await member.do("members"))["hint"] != [7, "two"]:
            await member.hear(lambda said: said["what"] == "change")
        assert "DEAD" not in {said.get("status") for said in member.heard}
        if member is one:
            assert sum(done["dropped"].values()) > 5_000
            assert {"oversized", "short", "new_version", "old_version", "other_cluster"} <= set(
                done["dropped"]
            )


@pytest.mark.slow
async def test_keys_are_rotated_live_and_the_old_one_is_worth_nothing_then(make_process: MakeProcess) -> None:
    members = await cluster(make_process, "one", "two", "three", settings=PATIENT)
    for order in ("install", "use", "remove"):
        for member in members:
            await member.do(order, key=KEY if order == "remove" else NEW_KEY)
    for epoch, member in enumerate(members, start=1):
        await member.do("tell", epoch=epoch)
    for member in members:
        while (done := await member.do("members"))["hint"] != [3, "three"]:
            await member.hear(lambda said: said["what"] == "change")
        assert done["dropped"] == {}
        assert {one["status"] for one in done["members"].values()} == {"ALIVE"}
    fresh = await make_process("fresh", join=members[:1], keys=[NEW_KEY], settings=PATIENT)
    await members[1].sees("fresh", "ALIVE")
    assert fresh.heard[-1]["what"] == "joined", "which takes an answer under the new key"


@pytest.mark.slow
async def test_a_cloned_directory_started_beside_the_original(make_process: MakeProcess) -> None:
    one, two = await cluster(make_process, "one", "two", settings=PATIENT)
    clone = await make_process("one", join=[two], settings=PATIENT)
    taken = [said for said in clone.heard if said["what"] == "id taken"]  # perhaps before it had joined
    assert (taken or [await clone.hear(lambda said: said["what"] == "id taken")])[0]["by"] == one.address
    assert (await two.do("members"))["members"]["one"]["status"] == "ALIVE"


@pytest.mark.slow
async def test_joining_through_a_member_that_dies_meanwhile(make_process: MakeProcess) -> None:
    one, two = await cluster(make_process, "one", "two")
    os.kill(two.process.pid, signal.SIGSTOP)  # the system accepts connections for it, and nobody answers
    three = await make_process("three", join=[two, one])
    await one.sees("three", "ALIVE")
    two.process.kill()
    await three.sees("two", "DEAD")


def resident_bytes(process: Process) -> int:
    pages = Path(f"/proc/{process.process.pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
async def test_a_thousand_known_members_take_little_memory(make_process: MakeProcess) -> None:
    """A table over the stream, and a packet from every one of them, so that each is a known sender too."""
    one = await make_process("one", settings={})
    await one.do("members")
    before = resident_bytes(one)

    async def taken(packets: int) -> None:
        while (await one.do("members"))["taken"] < packets:
            pass

    keyring = Keyring([bytes.fromhex(KEY)])
    await introduce(keyring, "test", NodeId("one"), one.address, 1000, taken=taken)
    for _ in range(20):
        done = await one.do("members")
        assert len(done["members"]) == 1001
    assert done["taken"] == 1000
    assert resident_bytes(one) - before <= 30_000_000

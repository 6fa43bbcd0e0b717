"""Three nodes in processes of their own: killed, all at once too, and stopped, under a load of writes."""

import asyncio
import contextlib
import json
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.member.nodes import RAFT
from tests.waiting import PATIENCE_SECONDS, eventually


class Process:
    """One life of a node, and what it said."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, log: Path) -> None:
        self.process, self.name, self.log = process, name, log
        self.port = 0
        self.acked: list[str] = []
        self.answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.leadership: dict[str, Any] = {"epoch": 0, "leader": None, "is_me": False}
        self.listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            if not line.endswith(b"\n"):
                return  # killed in the middle of a line
            said = json.loads(line)
            match said["what"]:
                case "acked":
                    self.acked.append(said["key"])
                case "leadership":
                    self.leadership = said
                case "failed":
                    pass
                case _:
                    self.answers.put_nowait(said)

    def tell(self, what: str, **fields: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": what, **fields}).encode() + b"\n")

    async def hear(self, what: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                said = await self.answers.get()
                if said["what"] in (what, "error"):
                    return said

    async def kill(self) -> None:
        """kill -9, and everything that it said before."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self.listening


class Processes:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.alive: dict[str, Process] = {}
        self.acked: set[str] = set()
        self.lives = 0

    async def start(self, *names: str) -> None:
        await asyncio.gather(*(self._start(name) for name in names))
        ports = {process.name: process.port for process in self.alive.values()}
        for process in self.alive.values():
            process.tell("addresses", ports=ports)

    async def _start(self, name: str) -> None:
        self.lives += 1
        log = self.directory / f"{name}.{self.lives}.log"
        options = {"name": name, "directory": str(self.directory), "founders": "abc"}
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.cluster.member.node_process", json.dumps(options),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=stderr,
                limit=1 << 24,
            )  # fmt: skip
        self.alive[name] = one = Process(process, name, log)
        one.port = (await one.hear("started"))["port"]

    async def kill(self, *names: str) -> None:
        killed = [self.alive.pop(name) for name in names]
        await asyncio.gather(*(process.kill() for process in killed))
        self.acked.update(key for process in killed for key in process.acked)

    def all_acked(self) -> set[str]:
        return self.acked | {key for process in self.alive.values() for key in process.acked}

    def write(self, *names: str) -> None:
        for name in names:
            self.alive[name].tell("write", writers=8, life=str(self.lives))

    async def leader(self) -> str:
        """Who leads, by its own word; the highest epoch counts."""
        await eventually(lambda: any(one.leadership["is_me"] for one in self.alive.values()))
        leaders = [one for one in self.alive.values() if one.leadership["is_me"]]
        return max(leaders, key=lambda one: one.leadership["epoch"]).name

    async def goes_on(self) -> None:
        """A hundred more writes are answered."""
        target = len(self.all_acked()) + 100
        await eventually(lambda: len(self.all_acked()) >= target)


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Processes]:
    made = Processes(tmp_path)
    await made.start("a", "b", "c")
    yield made
    for process in made.alive.values():
        with contextlib.suppress(ProcessLookupError):
            process.process.send_signal(signal.SIGCONT)
    await made.kill(*made.alive)


@pytest.mark.slow
async def test_what_was_acknowledged_survives_kill_9_of_leader_followers_and_all(
    processes: Processes,
) -> None:
    processes.write("a", "b", "c")
    for round_number in range(3):
        for whom in ("leader", "follower", "all"):
            await processes.goes_on()
            leader = await processes.leader()
            others = sorted(set("abc") - {leader})
            victims = {"leader": [leader], "follower": [others[round_number % 2]], "all": ["a", "b", "c"]}[
                whom
            ]
            await processes.kill(*victims)
            if whom != "all":
                await processes.goes_on()
            await processes.start(*victims)
            processes.write(*victims)
    await processes.goes_on()
    for process in processes.alive.values():
        process.tell("stop writing")
    reader = processes.alive[random.choice("abc")]
    reader.tell("read")
    keys = set((await reader.hear("catalogue"))["keys"])
    assert processes.all_acked() - keys == set()
    assert len(processes.all_acked()) > 1000


@pytest.mark.slow
async def test_a_leader_that_was_stopped_gives_no_order_any_more(processes: Processes) -> None:
    old = await processes.leader()
    epoch = processes.alive[old].leadership["epoch"]
    processes.alive[old].tell("order", epoch=epoch)
    assert (await processes.alive[old].hear("result"))["result"] == "Done"
    processes.alive[old].process.send_signal(signal.SIGSTOP)
    others = [one for name, one in processes.alive.items() if name != old]
    await eventually(lambda: any(one.leadership["is_me"] for one in others))
    await asyncio.sleep(RAFT.election_seconds_max)
    processes.alive[old].tell("order", epoch=epoch)
    processes.alive[old].process.send_signal(signal.SIGCONT)
    answer = await processes.alive[old].hear("result")
    assert (answer["result"], answer["reason"]) == ("Denied", "stale_epoch")
    await eventually(lambda: processes.alive[old].leadership["epoch"] > epoch)
    assert not processes.alive[old].leadership["is_me"] or await processes.leader() == old

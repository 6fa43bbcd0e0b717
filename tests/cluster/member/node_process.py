"""One node of a cluster in a process of its own. Lines of JSON say what it shall do, and what it sees.

``python -m tests.cluster.member.node_process '{"name": "a", "directory": ..., "founders": "abc"}'``
"""

from __future__ import annotations

import asyncio
import json
import sys
from itertools import count
from pathlib import Path
from typing import Any

import uvloop

from sllmd.cluster.catalogue.commands import SettingPut
from sllmd.cluster.catalogue.results import Done
from sllmd.cluster.member import RaftControl
from sllmd.cluster.member.settings import ControlSettings
from sllmd.core.errors import PeerUnreachable, SllmdError
from sllmd.core.ids import NodeId
from sllmd.telemetry.logs import configure_logs
from sllmd.telemetry.settings import LogSettings
from sllmd.wire.rpc.connection import Connection, Local
from sllmd.wire.rpc.hello import Hello
from sllmd.wire.rpc.listener import Listener
from sllmd.wire.rpc.methods import Methods
from sllmd.wire.rpc.peers import Address, Peers
from sllmd.wire.rpc.settings import RpcSettings
from tests.cluster.member.nodes import RAFT
from tests.cluster.play import members
from tests.ports import free_ports


def say(what: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"what": what, **fields}) + "\n")
    sys.stdout.flush()


class Process:
    def __init__(self, given: dict[str, Any]) -> None:
        self.name = given["name"]
        self.given = given
        self.methods = Methods()
        node = NodeId(self.name)
        settings = RpcSettings(redial_max_seconds=0.3)
        local = Local(hello=lambda: Hello("test", node), methods=self.methods, settings=settings, tls=None)
        self.listener, self.peers = Listener(local), Peers(local)
        self.addresses: dict[NodeId, Address] = {}
        self.control: RaftControl
        self.tasks: set[asyncio.Task[None]] = set()
        self.numbers = count()

    async def connect(self, node: NodeId) -> Connection:
        if node not in self.addresses:
            raise PeerUnreachable(f"nobody knows where {node} is")
        return await self.peers.connection(node, self.addresses[node])

    async def start(self) -> None:
        self.control = await RaftControl.start(
            node=NodeId(self.name),
            directory=Path(self.given["directory"]) / self.name,
            methods=self.methods,
            connect=self.connect,
            alive=lambda: list(self.addresses),
            founding=members(self.given["founders"]),
            settings=RAFT,
            control_settings=ControlSettings(propose_seconds=30),
        )
        say("started", port=await self.listener.start("127.0.0.1", free_ports()))

    async def write(self, life: str) -> None:
        """One write after the other; each that was answered is told."""
        while True:
            key = f"{self.name}.{life}.{next(self.numbers)}"
            try:
                if isinstance(await self.control.propose(SettingPut(key, b"", 0)), Done):
                    say("acked", key=key)
            except SllmdError as error:
                say("failed", key=key, code=error.code)
            await asyncio.sleep(0.002)

    async def obey(self, order: dict[str, Any]) -> None:
        match order["do"]:
            case "addresses":
                self.addresses = {
                    NodeId(node): Address("127.0.0.1", port) for node, port in order["ports"].items()
                }
            case "write":
                for number in range(order["writers"]):
                    task = asyncio.create_task(self.write(f"{order['life']}.{number}"))
                    self.tasks.add(task)
            case "stop writing":
                for task in self.tasks:
                    task.cancel()
            case "order":
                result = await self.control.propose(SettingPut("order", b"", None), epoch=order["epoch"])
                say("result", result=type(result).__name__, reason=getattr(result, "reason", None))
            case "read":
                catalogue = await self.control.read()
                say("catalogue", keys=[key for key, _ in catalogue.settings.items()])
            case "leadership":
                now = self.control.leadership()
                say("leadership", epoch=now.epoch, leader=now.leader, is_me=now.is_me)

    async def watch(self) -> None:
        async for now in self.control.leaderships():
            say("leadership", epoch=now.epoch, leader=now.leader, is_me=now.is_me)


async def main() -> None:
    configure_logs(LogSettings(), stream=sys.stderr)
    process = Process(json.loads(sys.argv[1]))
    await process.start()
    watching = asyncio.create_task(process.watch())
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        try:
            await process.obey(json.loads(line))
        except SllmdError as error:
            say("error", code=error.code, message=str(error))
    watching.cancel()


if __name__ == "__main__":
    uvloop.run(main())

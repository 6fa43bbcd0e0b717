"""A cluster's CA, nodes with certificates of it, and listeners on ports from the kernel."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from sllmd.core.ids import NodeId
from sllmd.wire.identity import Authority, make_identity, make_request, new_authority, new_key, save_identity
from sllmd.wire.rpc.connection import Connection, Local
from sllmd.wire.rpc.dialing import dial
from sllmd.wire.rpc.hello import VERSIONS, Hello
from sllmd.wire.rpc.listener import Listener
from sllmd.wire.rpc.methods import Methods
from sllmd.wire.rpc.settings import RpcSettings
from sllmd.wire.tls import Admission, Tls, admit_all

HOST = "127.0.0.1"
CLUSTER = "cluster-1"


@pytest.fixture
def event_loop_policy():
    return uvloop.EventLoopPolicy()


@pytest.fixture(scope="session")
def authority() -> Authority:
    return new_authority(CLUSTER, now_seconds=time.time())


def identity_file(
    directory: Path, authority: Authority, node: str, *, now_seconds: float | None = None, **signing: float
) -> Path:
    key = new_key()
    now_seconds = time.time() if now_seconds is None else now_seconds
    node_id = NodeId(node)
    certificate = authority.sign(make_request(node_id, key), node_id, now_seconds=now_seconds, **signing)
    return save_identity(directory / node, make_identity(key, certificate, authority.certificate_pem))


@dataclass
class Node:
    local: Local
    listener: Listener
    port: int

    async def dial(self, other: Node, **options: Any) -> Connection:
        return await dial(self.local, HOST, other.port, **options)


MakeNode = Callable[..., Awaitable[Node]]


@pytest.fixture
async def make_node(tmp_path: Path, authority: Authority) -> AsyncIterator[MakeNode]:
    nodes: list[Node] = []

    async def make(
        name: str,
        methods: Methods | None = None,
        *,
        tls: Path | bool = True,
        cluster: str = CLUSTER,
        versions: tuple[int, int] = VERSIONS,
        admission: Admission = admit_all,
        **settings: Any,
    ) -> Node:
        if tls is True:
            tls = identity_file(tmp_path, authority, name)
        local = Local(
            hello=lambda: Hello(cluster, NodeId(name), versions, {"bulk": 7}),
            methods=methods or Methods(),
            settings=RpcSettings.model_validate(settings),
            tls=Tls(tls) if tls else None,
            admission=admission,
        )
        listener = Listener(local)
        node = Node(local, listener, await listener.start(HOST, 0))
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        await node.listener.close()

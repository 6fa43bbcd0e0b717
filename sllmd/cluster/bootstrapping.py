"""Several new nodes, started at the same moment by a script, found one cluster together.

Each is given the others' addresses, the cluster key, and how many they are. A node that knows so many new
ones, itself among them, and has the lowest id of them asks the others for their promise; with all promises it
founds, and the others join it. A node promises once in its life, so that two sets of nodes that overlap never
found two clusters. Whoever meets a member instead of a new node joins.

A node that promised waits for its founder for ever; if that will never come back, starting the waiting nodes
again frees them.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog

from sllmd.cluster.settings import RPC_PORT, ClusterSettings
from sllmd.core.errors import BusyError, ControlUnavailable, PeerError, PeerRefused, ProtocolError
from sllmd.core.ids import NodeId
from sllmd.wire.addresses import split_address
from sllmd.wire.cluster_key import NONCE_BYTES, ClusterKey
from sllmd.wire.identity import make_identity, make_request, new_authority, new_key, save_identity
from sllmd.wire.ports import candidates, first_free
from sllmd.wire.rpc.connection import Local
from sllmd.wire.rpc.hello import Hello
from sllmd.wire.rpc.joining import AUTHORITY_METHOD, JOIN_METHOD, dial_stranger
from sllmd.wire.rpc.listener import Listener
from sllmd.wire.rpc.methods import Caller, Methods
from sllmd.wire.tls import Tls

METHOD = "join.bootstrap"
ROUND_SECONDS = 1.0
"""Between two looks around."""

_log = structlog.get_logger(__name__)


class State(StrEnum):
    """What a node says of itself."""

    NEW = "new"
    MEMBER = "member"
    PROMISED = "promised"
    """To who asked."""
    REFUSED = "refused"
    """It promised somebody else."""


class Wish(StrEnum):
    """What a node wants to hear."""

    STATE = "state"
    PROMISE = "promise"


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one node."""

    node: NodeId
    state: State


def offer_bootstrap(
    methods: Methods, node: NodeId, key: ClusterKey, answer: Callable[[NodeId, Wish], State]
) -> None:
    """Answer other holders of the key, and nobody else."""

    async def asked(body: Any, _caller: Caller) -> tuple[str, str, bytes]:
        match body:
            case (bytes(nonce), str(asker), str(wish), bytes(proof)) if _same(
                proof, key.prove(b"ask", nonce, asker.encode(), wish.encode())
            ) and wish in list(Wish):
                state = answer(NodeId(asker), Wish(wish))
                return node, state, key.prove(b"answer", nonce, node.encode(), state.encode())
        raise PeerRefused(
            "the node that asks does not have this cluster key",
            hint="give all nodes the same [cluster] secret_file",
        )

    methods.unary(METHOD, asked, strangers=True)


async def bootstrap(node: NodeId, settings: ClusterSettings, key: ClusterKey) -> bool:
    """Wait for the others; whether this node is to found the cluster (else it is to join).

    Raises PeerRefused when a node has another key, ConfigError when this one cannot listen.
    """
    with tempfile.TemporaryDirectory() as directory:
        gathering = _Gathering(node, settings, key)
        listener = Listener(
            Local(
                lambda: Hello("", node),
                gathering.methods,
                settings.rpc,
                _provisional_tls(node, Path(directory)),
            )
        )
        ports = settings.ports(settings.join)
        tried = candidates(ports.rpc, exactly=ports.exactly)
        await first_free(lambda port: listener.start(ports.host, port), tried)
        try:
            return await gathering.decide()
        finally:
            await listener.close()


class _Gathering:
    def __init__(self, node: NodeId, settings: ClusterSettings, key: ClusterKey) -> None:
        self._node = node
        self._settings = settings
        self._key = key
        self._promised: NodeId | None = None
        self.methods = Methods()
        offer_bootstrap(self.methods, node, key, self._answer)
        for method in (AUTHORITY_METHOD, JOIN_METHOD):
            self.methods.unary(method, _not_yet, strangers=True)

    async def decide(self) -> bool:
        while True:
            others = await self._ask_all(Wish.STATE)
            if any(other.state is State.MEMBER for other in others):
                return False
            new = {other.node for other in others if other.state is State.NEW} | {self._node}
            complete = len(new) >= self._settings.bootstrap_expect
            if complete and self._node == min(new) and await self._gather_promises():
                return True
            _log.info(
                "waiting for the other new nodes",
                here=len(new),
                expected=self._settings.bootstrap_expect,
                promised=self._promised,
            )
            await asyncio.sleep(ROUND_SECONDS)

    async def _gather_promises(self) -> bool:
        if self._promised not in (None, self._node):
            return False
        self._promised = self._node
        others = await self._ask_all(Wish.PROMISE)
        promises = {other.node for other in others if other.state is State.PROMISED} | {self._node}
        if len(promises) >= self._settings.bootstrap_expect:
            return True
        self._promised = None
        return False

    def _answer(self, asker: NodeId, wish: Wish) -> State:
        if wish is Wish.STATE:
            return State.NEW
        if self._promised is None and asker != self._node:
            self._promised = asker
        return State.PROMISED if self._promised == asker else State.REFUSED

    async def _ask_all(self, wish: Wish) -> list[Answer]:
        answers = await asyncio.gather(*(self._ask(address, wish) for address in self._settings.join))
        return [answer for answer in answers if answer is not None and answer.node != self._node]

    async def _ask(self, address: str, wish: Wish) -> Answer | None:
        """None: nobody there yet."""
        host, port = split_address(address, default_port=RPC_PORT)
        nonce = os.urandom(NONCE_BYTES)
        proof = self._key.prove(b"ask", nonce, self._node.encode(), wish.encode())
        try:
            connection = await dial_stranger(host, port, self._settings.rpc)
            try:
                answer = await connection.call(
                    METHOD,
                    (nonce, self._node, str(wish), proof),
                    deadline_seconds=self._settings.rpc.connect_timeout_seconds,
                )
            finally:
                await connection.close()
        except PeerRefused:
            raise
        except (PeerError, BusyError):
            return None
        match answer:
            case (str(other), str(state), bytes(told)) if _same(
                told, self._key.prove(b"answer", nonce, other.encode(), state.encode())
            ):
                return Answer(NodeId(other), State(state))
        raise ProtocolError(f"{address} does not prove that it has the cluster key")


def _same(one: bytes, other: bytes) -> bool:
    return hmac.compare_digest(one, other)


async def _not_yet(_body: Any, _caller: Caller) -> Any:
    raise ControlUnavailable("this node has no cluster yet", retry_after_seconds=ROUND_SECONDS)


def _provisional_tls(node: NodeId, directory: Path) -> Tls:
    """TLS needs a certificate, and nobody believes this one: the proofs count."""
    now_seconds = time.time()
    authority, key = new_authority("", now_seconds=now_seconds), new_key()
    signed = authority.sign(make_request(node, key), node, now_seconds=now_seconds)
    return Tls(save_identity(directory, make_identity(key, signed, authority.certificate_pem)))

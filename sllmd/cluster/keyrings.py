"""The gossip keys as the cluster agrees on them: a setting of the catalogue that every node follows.

A key is replaced in three steps, and everybody keeps talking: the new one is installed everywhere, then used
everywhere, then the old one is removed everywhere. A node that was away meanwhile follows when it is back: it
hears of the keys over TLS, not over gossip. A cluster that never rotated has no such setting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from sllmd.cluster.catalogue import Catalogue
from sllmd.cluster.catalogue.commands import SettingPut
from sllmd.cluster.catalogue.results import Denied
from sllmd.cluster.codec import pack, unpack
from sllmd.cluster.control import ControlStore
from sllmd.core.errors import ControlUnavailable, DeadlineExceeded, PeerError, ProtocolError
from sllmd.core.ids import NodeId
from sllmd.wire.rpc.methods import Caller, Methods
from sllmd.wire.seal import Keyring, key_id

SETTING = "gossip.keyring"
METHOD = "cluster.keyring"
FOLLOW_SECONDS = 30.0
"""For every living node to follow one step; they are told within milliseconds."""
ASK_SECONDS = 0.2
"""Between two questions whether all have followed."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RingStatus:
    """What one node has installed: ids, never keys."""

    node: NodeId
    keys: tuple[str, ...]
    """The one that seals first."""


def agreed_keys(catalogue: Catalogue) -> list[bytes] | None:
    """The keys as agreed, the one that seals first; None: nobody ever changed them."""
    setting = catalogue.settings.get(SETTING)
    if setting is None:
        return None
    match unpack(setting.value):
        case [*keys] if keys and all(isinstance(key, bytes) for key in keys):
            return list(keys)
    raise ProtocolError(f"the setting {SETTING} cannot be understood")


def follow(keyring: Keyring, keys: Sequence[bytes]) -> bool:
    """Make the ring these keys; whether that changed it."""
    if keyring.keys() == list(keys):
        return False
    wanted = [key_id(key) for key in keys]
    for key in keys:
        keyring.install(key)
    keyring.use(wanted[0])
    for name in keyring.ids():
        if name not in wanted:
            keyring.remove(name)
    if len(keys) == 1:  # the last of three steps: one line for one change
        _log.info("the gossip key was replaced", key=wanted[0])
    return True


def offer_status(methods: Methods, keyring: Callable[[], Keyring]) -> None:
    """Tell other members which keys are installed here."""

    async def status(_body: Any, _caller: Caller) -> list[str]:
        return keyring().ids()

    methods.unary(METHOD, status)


class Keyrings:
    """What an operator does with the keys."""

    def __init__(
        self,
        control: ControlStore,
        keyring: Keyring,
        me: NodeId,
        others: Callable[[], Sequence[NodeId]],
        call: Callable[[NodeId, str, Any], Awaitable[Any]],
    ) -> None:
        """``others``: members that live."""
        self._control = control
        self._keyring = keyring
        self._me = me
        self._others = others
        self._call = call

    async def status(self) -> tuple[list[RingStatus], dict[NodeId, str]]:
        """What each living node has installed; and who could not be asked, and why."""
        found, lost = [RingStatus(self._me, tuple(self._keyring.ids()))], {}
        for node in self._others():
            try:
                found.append(RingStatus(node, _ids(await self._call(node, METHOD, None))))
            except PeerError as error:
                lost[node] = error.message
        return found, lost

    async def rotate(self) -> str:
        """Replace the key that seals by a fresh one, everywhere; the new key's id.

        Raises ControlUnavailable, OutcomeUnknown, DeadlineExceeded when a living node does not follow.
        Wherever it stops, all nodes still understand each other, and rotating again goes on from there.
        """
        old, new = self._keyring.keys()[0], Keyring.new_key()
        for keys in ([old, new], [new, old], [new]):
            await self._agree_on(keys)
            await self._all_follow(keys)
        return key_id(new)

    async def _agree_on(self, keys: list[bytes]) -> None:
        current = (await self._control.read()).settings.get(SETTING)
        result = await self._control.propose(
            SettingPut(SETTING, pack(keys), current.revision if current else 0)
        )
        if isinstance(result, Denied):
            raise ControlUnavailable(
                "somebody else changes the gossip keys at the same time", retry_after_seconds=FOLLOW_SECONDS
            )

    async def _all_follow(self, keys: list[bytes]) -> None:
        wanted = tuple(key_id(key) for key in keys)
        behind: list[NodeId] = []
        try:
            async with asyncio.timeout(FOLLOW_SECONDS):
                while True:
                    found, lost = await self.status()
                    behind = [one.node for one in found if one.keys != wanted] + list(lost)
                    if not behind:
                        return
                    await asyncio.sleep(ASK_SECONDS)
        except TimeoutError:
            raise DeadlineExceeded(
                f"these nodes did not follow within {FOLLOW_SECONDS:.0f} s: {', '.join(behind)}",
                hint="nothing is broken: all keys in use are still installed. Bring them back, or wait until "
                "they count as dead, and rotate again",
            ) from None


def _ids(answer: Any) -> tuple[str, ...]:
    match answer:
        case tuple(ids) if all(isinstance(name, str) for name in ids):
            return ids
    raise ProtocolError("the answer about gossip keys cannot be understood")

"""What a node answers to: names, and the functions behind them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sllmd.core.errors import PeerRefused
from sllmd.core.ids import NodeId

if TYPE_CHECKING:
    from sllmd.wire.rpc.connection import Connection


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls."""

    node: NodeId
    """Empty: a stranger who wants to join."""
    address: str
    fingerprint: str
    """Of its certificate; empty without TLS."""
    connection: Connection
    """To call it back."""


Unary = Callable[[Any, Caller], Awaitable[Any]]
Streaming = Callable[[Any, Caller], AsyncGenerator[Any, None]]
Noted = Callable[[Any, Caller], None]
_Handler = TypeVar("_Handler")


class Methods:
    """A table of methods, filled before the first connection. Bodies are msgpack values, arrays as tuples.

    A handler that raises an SllmdError has it raised at the caller; it is cancelled when the caller leaves,
    when the deadline passes, or when the connection breaks. Streams advance only as fast as they are read.
    """

    def __init__(self) -> None:
        self._unary: dict[str, Unary] = {}
        self._streaming: dict[str, Streaming] = {}
        self._notes: dict[str, Noted] = {}
        self._open: set[str] = set()

    def unary(self, name: str, handler: Unary, *, strangers: bool = False) -> None:
        """One body in, one out. ``strangers``: also for nodes that have no certificate yet."""
        self._unary[name] = handler
        if strangers:
            self._open.add(name)

    def stream(self, name: str, handler: Streaming) -> None:
        """One body in, any number of items out: an async generator, closed in any case."""
        self._streaming[name] = handler

    def note(self, name: str, handler: Noted) -> None:
        """One body in, nothing out; called on the loop, must not wait."""
        self._notes[name] = handler

    def find_unary(self, name: str, caller: Caller) -> Unary:
        """Raises PeerRefused when there is none, or not for this caller."""
        return _found(self._unary.get(name) if self._may(name, caller) else None, name, caller)

    def find_streaming(self, name: str, caller: Caller) -> Streaming:
        """Raises PeerRefused when there is none, or not for this caller."""
        return _found(self._streaming.get(name) if self._may(name, caller) else None, name, caller)

    def find_note(self, name: str, caller: Caller) -> Noted | None:
        """None: there is none, or not for this caller."""
        return self._notes.get(name) if self._may(name, caller) else None

    def _may(self, name: str, caller: Caller) -> bool:
        return bool(caller.node) or name in self._open


def _found(handler: _Handler | None, name: str, caller: Caller) -> _Handler:
    if handler is not None:
        return handler
    if not caller.node:
        raise PeerRefused(
            f"`{name}` is for members of the cluster", hint="join with `sllmd start --join` and a token"
        )
    raise PeerRefused(f"this node knows no method `{name}`", hint="run the same release on all nodes")

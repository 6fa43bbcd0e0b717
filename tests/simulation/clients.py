"""Clients that write, compare-and-set and read a few keys, and remember what they were told and when."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sllmd.cluster.catalogue.commands import ClientOpen, Command, SettingPut
from sllmd.cluster.catalogue.results import Denied, Done, Reason
from tests.simulation.linearizability import Operation

if TYPE_CHECKING:
    from tests.simulation.world import World

KEYS = ("alpha", "beta", "gamma")
PATIENCE_SECONDS = 0.4


class Client:
    """One operation at a time; the same command again, under its number, until there is an answer."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.number = 0
        self.seq = 0
        self.seen: dict[str, tuple[Any, int]] = {}
        self.leader: Any = None
        self._attempt = 0
        self._ask: Any = None
        self._done: Any = None
        self.pending: tuple[str, str, float, Any, Any] | None = None
        self._open()

    # --- asking until there is an answer ---

    def _open(self) -> None:
        self._begin(lambda host, answer: host.propose(Command(ClientOpen(self.name)), answer), self._opened)

    def _opened(self, result: Any) -> None:
        self.number, self.seq = result.revision, 0
        self._next()

    def _begin(self, ask: Any, done: Any) -> None:
        self._ask, self._done = ask, done
        self._try()

    def _try(self) -> None:
        if self.world.clients_stopped and self.pending is None:
            return
        self._attempt += 1
        host = self.world.hosts.get(self.leader) or self.world.any_host()
        attempt = self._attempt
        self.world.at(self.world.now + self._delay(), self._arrive, host, attempt)
        self.world.at(self.world.now + PATIENCE_SECONDS, self._patience_ends, attempt)

    def _arrive(self, host: Any, attempt: int) -> None:
        if attempt == self._attempt:
            self._ask(host, lambda answer: self._answer_later(attempt, answer))

    def _answer_later(self, attempt: int, answer: Any) -> None:
        if self.world.random.random() >= self.world.network.loss:
            self.world.at(self.world.now + self._delay(), self._answered, attempt, answer)

    def _answered(self, attempt: int, answer: Any) -> None:
        if attempt != self._attempt:
            return
        kind, value = answer
        if kind in ("result", "state"):
            self._attempt += 1
            self._done(value)
        else:
            self.leader = value
            self._attempt += 1
            self.world.at(self.world.now + 0.02, self._retry, self._attempt)

    def _retry(self, attempt: int) -> None:
        if attempt == self._attempt:
            self._try()

    def _patience_ends(self, attempt: int) -> None:
        if attempt == self._attempt:
            self.leader = None
            self._try()

    def _delay(self) -> float:
        return 0.0005 + self.world.random.random() * 0.002

    # --- what to ask ---

    def _next(self) -> None:
        self.pending = None
        pause = self.world.random.random() * self.world.client_pause_seconds
        self.world.at(self.world.now + pause, self._choose)

    def _choose(self) -> None:
        if self.world.clients_stopped:
            return
        random = self.world.random
        key, kind = random.choice(KEYS), random.choice(("read", "read", "write", "cas"))
        if kind == "cas" and key not in self.seen:
            kind = "write"
        if kind == "read":
            self.leader = None  # any node answers reads
            self.pending = (key, "read", self.world.now, None, None)
            self._begin(lambda host, answer: host.read(answer), self._was_read)
            return
        self.seq += 1
        value = f"{self.name}.{self.seq}"
        expected_value, revision = self.seen[key] if kind == "cas" else (None, None)
        self.pending = (key, kind, self.world.now, value, expected_value)
        body = SettingPut(key, value.encode(), revision)
        command = Command(body, self.number, self.seq, self.seq)
        self._begin(lambda host, answer: host.propose(command, answer), self._was_written)

    def _was_read(self, state: Any) -> None:
        assert self.pending is not None
        key, _, invoked, _, _ = self.pending
        setting = state.settings.get(key)
        value = setting.value.decode() if setting else None
        if setting:
            self.seen[key] = (value, setting.revision)
        self.world.history.append(Operation(key, "read", invoked, self.world.now, value))
        self._next()

    def _was_written(self, result: Any) -> None:
        assert self.pending is not None
        key, kind, invoked, value, expected = self.pending
        if isinstance(result, Denied) and result.reason is not Reason.CONFLICT:
            self.world.fail(f"{self.name}: command {self.seq} was denied: {result}")
        succeeded = isinstance(result, Done)
        operation = Operation(key, kind, invoked, self.world.now, value, expected, succeeded)
        self.world.history.append(operation)
        if succeeded:
            self.world.acknowledged += 1
            self.seen[key] = (value, result.revision)
        self._next()

    def unanswered(self) -> Operation | None:
        """An operation whose outcome nobody was told."""
        if self.pending is None:
            return None
        key, kind, invoked, value, expected = self.pending
        return Operation(key, kind, invoked, math.inf, value, expected)

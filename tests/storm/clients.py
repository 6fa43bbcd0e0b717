"""Clients of a fleet in a storm: they change and read deployments, ask warm models, and note what they hear.

A catalogue operation that was refused before it began (connections, ``control_unavailable``) did not happen:
that is the API's promise, and the checker holds it to it. One without an answer, or with ``outcome_unknown``,
may happen at any time or never.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp

from tests.simulation.linearizability import Operation
from tests.storm.fleet import Daemon, Fleet

KEYS = 8
WRITES = 0.2
"""Of the catalogue operations; half of them compare and set."""
OPERATION_SECONDS = 12.0
"""A little more than a daemon tries for."""
REQUEST_SECONDS = 30.0
REFUSED = ("control_unavailable",)


@dataclass
class Written:
    """An acknowledged write of a key."""

    value: str
    revision: int


@dataclass
class Notes:
    """What all clients saw."""

    history: list[Operation] = field(default_factory=list)
    written: dict[str, list[Written]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    added_seconds: list[float] = field(default_factory=list)
    """Of warm requests: how long each took."""

    @property
    def operations(self) -> int:
        """Catalogue operations that were answered."""
        return self.counts["read"] + self.counts["write"]

    def answered_share(self) -> float:
        """Of warm requests, those on daemons killed meanwhile apart."""
        asked = self.counts["answered"] + self.counts["failed"]
        return self.counts["answered"] / asked if asked else 0.0


class CatalogueClient:
    """One operation after another, each through any daemon that takes connections."""

    def __init__(self, fleet: Fleet, notes: Notes, name: str, pause_seconds: float) -> None:
        self._fleet = fleet
        self._notes = notes
        self._name = name
        self._pause_seconds = pause_seconds
        self._random = Random(name)
        self._seen: dict[str, Written] = {}
        self._number = 0

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            key = f"key{self._random.randrange(KEYS)}"
            if self._random.random() < WRITES:
                await self._write(key)
            else:
                await self.read(key)
            await asyncio.sleep(self._random.random() * 2 * self._pause_seconds)

    async def read(self, key: str, daemon: Daemon | None = None) -> Written | None:
        """The newest value, as an operation of the history; None: there is none, or no answer."""
        invoked = now()
        answer = await self._ask("GET", key, None, daemon)
        if answer is None or answer[0] not in (200, 404):
            self._notes.counts["read without an answer"] += 1
            return None
        found = _written(answer[1]) if answer[0] == 200 else None
        self._notes.counts["read"] += 1
        value = found.value if found else None
        self._notes.history.append(Operation(key, "read", invoked, now(), value))
        if found:
            self._seen[key] = found
        return found

    async def _write(self, key: str) -> None:
        self._number += 1
        value = f"{self._name}.{self._number}"
        seen = self._seen.get(key)
        compare = seen is not None and self._random.random() < 0.5
        body: dict[str, object] = {"digest": "d", "source": value}
        kind, expected = "write", None
        if compare and seen is not None:
            body["expected"], kind, expected = seen.revision, "cas", seen.value
        invoked = now()
        answer = await self._ask("PUT", key, body, None)
        status, reply = answer if answer is not None else (0, {})
        if status == 503 and reply["error"]["code"] in REFUSED:
            self._notes.counts["write refused"] += 1
            return
        if status in (200, 409):
            self._notes.counts["write"] += 1
            ended = now()
        else:
            self._notes.counts["write without an answer"] += 1
            self._note_strange(status, reply)
            ended = math.inf
        won = status != 409
        self._notes.history.append(Operation(key, kind, invoked, ended, value, expected, won))
        if status == 200:
            written = _written(reply)
            self._seen[key] = written
            self._notes.written.setdefault(key, []).append(written)

    async def _ask(
        self, method: str, key: str, body: object, daemon: Daemon | None
    ) -> tuple[int, Any] | None:
        """None: no answer came. Who takes no connection is passed by."""
        path = f"/sllmd/v1/deployments/{key}" + ("" if body else "?newest=true")
        daemons = [daemon] if daemon else self._random.sample(self._fleet.daemons, len(self._fleet.daemons))
        for each in daemons:
            try:
                return await each.ask(method, path, body, seconds=OPERATION_SECONDS)
            except aiohttp.ClientConnectorError:
                continue
            except (aiohttp.ClientError, TimeoutError, ValueError):
                return None
        return 503, {"error": {"code": REFUSED[0]}}

    def _note_strange(self, status: int, reply: Any) -> None:
        code = reply.get("error", {}).get("code") if status else None
        if status and code != "outcome_unknown":
            self._notes.failures.append(f"a write was answered {status} {reply}")


class WarmClient:
    """Completions of a model that is loaded everywhere."""

    def __init__(self, fleet: Fleet, notes: Notes, name: str, model: str, pause_seconds: float) -> None:
        self._fleet = fleet
        self._notes = notes
        self._model = model
        self._pause_seconds = pause_seconds
        self._random = Random(name)

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._one()
            await asyncio.sleep(self._random.random() * 2 * self._pause_seconds)

    async def _one(self) -> None:
        for daemon in self._random.sample(self._fleet.daemons, len(self._fleet.daemons)):
            ends, begun = self._ends(), now()
            try:
                status, body = await daemon.ask(
                    "POST",
                    "/v1/completions",
                    {"model": self._model, "prompt": "hi", "max_tokens": 8, "ignore_eos": True},
                    seconds=REQUEST_SECONDS,
                )
            except aiohttp.ClientConnectorError:
                continue
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                self._lost(daemon, ends, repr(error))
                return
            if status == 200:
                self._notes.counts["answered"] += 1
                self._notes.added_seconds.append(now() - begun)
            elif body["error"]["code"] == "worker_lost" and ends != self._ends():
                self._notes.counts["generating on a killed daemon"] += 1
            else:
                self._lost(daemon, ends, f"{status} {body}")
            return
        self._notes.counts["failed"] += 1
        self._notes.failures.append("no daemon took a connection")

    def _ends(self) -> dict[str, int]:
        """How often each daemon ended so far."""
        return {daemon.name: daemon.ends for daemon in self._fleet.daemons}

    def _lost(self, daemon: Daemon, ends: dict[str, int], how: str) -> None:
        """In flight on a daemon that was ended, which nobody could answer; or a failure."""
        if daemon.ends != ends[daemon.name] or not daemon.runs:
            self._notes.counts["in flight on a killed daemon"] += 1
        else:
            self._notes.counts["failed"] += 1
            self._notes.failures.append(f"{daemon.name}: {how}")


def lost_writes(notes: Notes, final: dict[str, Written | None]) -> list[str]:
    """Acknowledged writes that are neither there at the end nor behind a later one. Revisions only grow."""
    lost = []
    for key, writes in notes.written.items():
        newest = max(writes, key=lambda one: one.revision)
        found = final.get(key)
        if found is None or found.revision < newest.revision:
            lost.append(f"{key}: {newest} was acknowledged, {found} is there")
        elif found.revision == newest.revision and found.value != newest.value:
            lost.append(f"{key}: {newest} was acknowledged, {found} is there instead")
        revisions = Counter(one.revision for one in writes)
        lost += [f"{key}: two writes of revision {one}" for one, count in revisions.items() if count > 1]
    return lost


def _written(body: Any) -> Written:
    return Written(body["source"], body["revision"])


def now() -> float:
    """Of the clock that all operations are ordered by."""
    return asyncio.get_running_loop().time()

"""Streams that a client can come back to: begun with a header, resumed by ``GET /sllmd/v1/generations/{id}``.

``X-Sllmd-Resumable: 1`` on a streamed completion or chat asks for it; the answer's ``X-Sllmd-Generation``
says where, and events carry ids. Whoever comes back, to any node and with the same key, gets what follows
``Last-Event-ID``, in the form of the first request. An id tells how far the client is, so an event is never
told twice; what cannot be joined to what the client has ends with ``resume_gap``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from uuid import uuid4

from aiohttp import web

from sllmd.api.access import GENERATIONS_PREFIX
from sllmd.api.choices import Choices
from sllmd.api.chunks import Chunks, usage_of
from sllmd.api.errors import HttpRefusal
from sllmd.api.events import EventStream
from sllmd.api.forms import Form, resumable
from sllmd.api.kept import KeptStream
from sllmd.api.keys import presented_secret
from sllmd.api.marks import Mark, next_checksum, read_marks, write_marks
from sllmd.api.rooms import EXCHANGE, ROOMS
from sllmd.api.stream import late_reply, timing_headers
from sllmd.core.errors import Conflict, ProtocolError, RecordNotFound
from sllmd.roles.generation import Delta, GenerationRequest, TextLogprob, Usage
from sllmd.roles.resumption import Head

ASKED, ANSWERED = "X-Sllmd-Resumable", "X-Sllmd-Generation"


def begin_kept(
    request: web.Request, choices: Choices, form: Form, requests: Sequence[GenerationRequest]
) -> KeptStream | None:
    """The stream, if its client asked to be able to come back, and it can."""
    if request.headers.get(ASKED) not in ("1", "true") or not resumable(form.logprobs, form.echoes):
        return None
    rooms = request.app[ROOMS]
    head = Head(_key(request), form.pack(), tuple(requests))
    try:
        stream = KeptStream(rooms.operator.resumption, uuid4().hex, head, form, choices, rooms.metrics)
    except ProtocolError:  # longer than what a node keeps for another
        return None
    return stream if stream.start() else None


async def send_kept(
    request: web.Request, stream: KeptStream, headers: Mapping[str, str] | None = None, event_id: str = ""
) -> web.StreamResponse:
    """What follows ``event_id``. Raises only before the first byte."""
    rooms, exchange = request.app[ROOMS], request[EXCHANGE]
    exchange.model = stream.form.shape.model
    telling = _Telling(stream, read_marks(event_id, len(stream.form.counts_prompt)))
    named = {**(headers or {}), ANSWERED: GENERATIONS_PREFIX + stream.stream_id}
    async with EventStream(request, rooms.settings) as events, aclosing(stream.read()) as said:
        try:
            if not await stream.began_within(rooms.settings.hold_headers):
                await events.open(named, telling.opening())
            async for index, delta in said:
                if not events.opened:
                    await events.open({**named, **timing_headers(request, stream.choices)}, telling.opening())
                await events.send(telling.delta(index, delta))
            if not events.opened:
                await events.open(named, telling.opening())
            await events.end(telling.closing())
        except ConnectionError:
            raise
        except Exception as error:
            if not events.opened:
                raise
            await events.fail(late_reply(error, rooms, exchange))
    return events.response


async def resume(request: web.Request) -> web.StreamResponse:
    """Handler of GET /sllmd/v1/generations/{id}."""
    rooms = request.app[ROOMS]
    stream_id, key = request.match_info["id"], _key(request)
    event_id = request.headers.get("Last-Event-ID", "")
    resumption = rooms.operator.resumption
    async with resumption.one_at_a_time(stream_id):
        stream = resumption.living(stream_id, key)
        if stream is None:
            inherited = await resumption.claim(stream_id, key)
            if inherited is None:
                raise RecordNotFound(
                    "there is no stream of this id, or not for your key",
                    hint="it may have ended some minutes ago, or all nodes that knew it are gone",
                )
            form = Form.unpack(inherited.head.form)
            requests = inherited.requests()
            head = Head(key, inherited.head.form, tuple(requests))
            choices = Choices(rooms.router, requests)
            stream = KeptStream(
                resumption, stream_id, head, form, choices, rooms.metrics, term=inherited.term
            )
            if not stream.start():
                raise HttpRefusal(503, "queue_full", "This node has as many such streams as it may.")
    assert isinstance(stream, KeptStream), "all streams of this node are begun here"
    return await send_kept(request, stream, event_id=event_id)


def _key(request: web.Request) -> str:
    """Who asks, so that all nodes agree on it; empty where no key was needed."""
    secret = presented_secret(request.headers)
    if request[EXCHANGE].key_id is None or secret is None:
        return ""
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(slots=True)
class _Said:
    """What one choice has come to, for a reader that begins at the beginning; see ``chunks.Account``."""

    usage: Usage
    mark: Mark
    prompt_logprobs: tuple[TextLogprob | None, ...] | None = None


class _Telling:
    """Events with ids, from the first that the client has not had."""

    def __init__(self, stream: KeptStream, known: Sequence[Mark]) -> None:
        self._stream = stream
        self._known = known
        self._chunks: Chunks = stream.form.chunks()
        self._said = [_Said(Usage(), Mark()) for _ in known]

    def opening(self) -> bytes:
        """What follows the headers at once; a client that has had anything has had it."""
        opening = self._chunks.opening()
        if any(mark.tokens >= 0 for mark in self._known) or not opening:
            return b""
        for said in self._said:
            said.mark = Mark(0)
        *firsts, last, _ = opening.split(b"\n\n")
        return b"".join(event + b"\n\n" for event in firsts) + self._with_id(last + b"\n\n")

    def delta(self, index: int, delta: Delta) -> bytes:
        """The events of one delta. Raises Conflict (``resume_gap``) when the client has other tokens."""
        said = self._said[index]
        before = said.mark
        self._account(index, said, delta)
        events = [event + b"\n\n" for event in self._chunks.delta(index, delta, said).split(b"\n\n")[:-1]]
        after = said.mark
        told = b""
        for position, event in enumerate(events):
            is_last = position == len(events) - 1
            said.mark = after if is_last else self._between(before, after)
            if said.mark.place > self._known[index].place:
                told += self._with_id(event)
        said.mark = after
        self._check(index, after)
        return told

    def _between(self, before: Mark, after: Mark) -> Mark:
        """Before the second of two events: an echoed prompt is told, or the text that ends."""
        if before.tokens < 0 and self._stream.form.kind == "completion":
            return Mark(0)
        return Mark(after.tokens, False, after.checksum)

    def _account(self, index: int, said: _Said, delta: Delta) -> None:
        generation = self._stream.choices.generations[index]
        tokens = max(0, said.mark.tokens) + delta.token_count
        checksum = said.mark.checksum
        for token_id in self._stream.token_ids(index, tokens - delta.token_count, tokens):
            checksum = next_checksum(checksum, token_id)
        said.mark = Mark(tokens, delta.finish_reason is not None, checksum)
        said.usage = Usage(generation.usage.prompt_tokens, tokens, generation.usage.cached_tokens)

    def _check(self, index: int, now: Mark) -> None:
        known = self._known[index]
        other = now.tokens == known.tokens and now.checksum != known.checksum
        short = now.finished and now.place < known.place
        if other or short:
            raise Conflict(
                "what follows the last event that you have cannot be told: the tokens that were computed anew"
                f" differ at {known.tokens}",
                code="resume_gap",
                hint="ask again, without Last-Event-ID or as a new request",
            )

    def closing(self) -> bytes:
        """What stands before ``[DONE]``."""
        return self._chunks.closing(usage_of(self._said, self._stream.form.counts_prompt))

    def _with_id(self, event: bytes) -> bytes:
        """Of each choice what the client has: it may be further than what is told anew just now."""
        had = zip(self._known, self._said, strict=True)
        marks = [known if known.place > said.mark.place else said.mark for known, said in had]
        return f"id: {write_marks(marks)}\n".encode() + event


ROUTES = (web.get(GENERATIONS_PREFIX + "{id}", resume, allow_head=False),)

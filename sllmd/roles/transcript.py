"""Work and what happens to it, as values that travel between nodes. Pure.

A plain token is (index, id): one small item of a stream. Whatever else happens is a tuple that begins with a
word. Log probabilities of a long prompt come in pieces before the event that ends the prefill, so that no
item is over ``wire.rpc``'s limit.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from sllmd.core.errors import ProtocolError
from sllmd.core.ids import Digest, GenerationId, ModelName, NodeId, RequestId
from sllmd.engine.protocol import (
    FailedEvent,
    FinishedEvent,
    FinishReason,
    GenerationState,
    PrefilledEvent,
    Sampling,
    TokenEvent,
    TokenLogprob,
)
from sllmd.roles.work import Granted, Happening, Work

VERSION = 2
PROMPT_LOGPROBS_PER_ITEM = 1024
"""At 21 candidates of 15 bytes for each position: 330 kB of the 1 MB that an item may have."""


def pack_work(work: Work) -> tuple[Any, ...]:
    """``work`` as a msgpack value; four bytes for each token, so that any prompt fits a frame."""
    state = work.state
    return (
        VERSION,
        work.request_id,
        work.model,
        work.digest,
        work.keep_alive_seconds,
        work.key,
        state.generation_id,
        pack_ids(state.prompt_ids),
        pack_ids(state.output_ids),
        tuple(getattr(state.sampling, field.name) for field in fields(Sampling)),
    )


def unpack_work(value: Any) -> Work:
    """The inverse; raises ProtocolError."""
    match value:
        case (
            int(version),
            str(request_id),
            str(model),
            str(digest),
            float() | int() | None as keep_alive_seconds,
            str(key),
            str(generation_id),
            bytes(prompt),
            bytes(output),
            tuple(sampling),
        ) if version == VERSION and len(sampling) <= len(fields(Sampling)):
            pass
        case _:
            raise ProtocolError("a generation that cannot be understood")
    try:
        state = GenerationState(
            GenerationId(generation_id), unpack_ids(prompt), Sampling(*sampling), unpack_ids(output)
        )
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"a generation that cannot be understood: {error}") from error
    return Work(RequestId(request_id), ModelName(model), Digest(digest), state, keep_alive_seconds, key)


def pack_ids(ids: Iterable[int]) -> bytes:
    """Four bytes each, little endian."""
    packed = array("I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_ids(data: bytes) -> list[int]:
    """The inverse; raises ValueError."""
    unpacked = array("I")
    unpacked.frombytes(data)
    if sys.byteorder == "big":
        unpacked.byteswap()
    return unpacked.tolist()


def pack_happening(happening: Happening) -> Iterator[tuple[Any, ...]]:
    """As items of a stream: one, but for a prompt's log probabilities."""
    match happening:
        case TokenEvent(_, index, token_id, None, None):
            yield index, token_id
        case TokenEvent(_, index, token_id, reason, logprob):
            yield "token", index, token_id, reason, _pack_logprob(logprob)
        case Granted():
            yield (
                "granted",
                happening.node,
                happening.cold,
                happening.tier,
                happening.load_ms,
                happening.estimate_ms,
                happening.stages,
            )
        case PrefilledEvent(_, prompt_tokens, reused_tokens, seconds, logprobs):
            yield from _pack_prompt_logprobs(logprobs or ())
            yield "prefilled", prompt_tokens, reused_tokens, seconds, logprobs is not None
        case FinishedEvent(_, reason):
            yield "finished", reason
        case FailedEvent(_, message, kind):
            yield "failed", message, kind


def _pack_prompt_logprobs(logprobs: Sequence[TokenLogprob | None]) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(logprobs), PROMPT_LOGPROBS_PER_ITEM):
        yield "prompt", [_pack_logprob(each) for each in logprobs[start : start + PROMPT_LOGPROBS_PER_ITEM]]


class Transcript:
    """Items of one generation's stream, back to what happened."""

    def __init__(self, generation_id: GenerationId) -> None:
        self._generation_id = generation_id
        self._prompt_logprobs: list[TokenLogprob | None] = []

    def read(self, item: Any) -> Happening | None:
        """None: only a part of what happened. Raises ProtocolError."""
        match item:
            case (int(index), int(token_id)):
                return TokenEvent(self._generation_id, index, token_id)
            case ("prompt", tuple(logprobs)):
                self._prompt_logprobs += map(_unpack_logprob, logprobs)
                return None
        try:
            return self._read_rarer(item)
        except (TypeError, ValueError) as error:
            raise ProtocolError(f"an event that cannot be understood: {error}") from error

    def _read_rarer(self, item: Any) -> Happening:
        match item:
            case ("token", int(index), int(token_id), reason, logprob):
                ends = None if reason is None else FinishReason(reason)
                return TokenEvent(self._generation_id, index, token_id, ends, _unpack_logprob(logprob))
            case ("granted", str(node), bool(cold), str(tier), load_ms, estimate_ms, dict(stages)):
                return Granted(NodeId(node), cold, tier, float(load_ms), float(estimate_ms), stages)
            case ("prefilled", int(prompt_tokens), int(reused_tokens), float(seconds), bool(asked)):
                logprobs = tuple(self._prompt_logprobs) if asked else None
                return PrefilledEvent(self._generation_id, prompt_tokens, reused_tokens, seconds, logprobs)
            case ("finished", reason):
                return FinishedEvent(self._generation_id, FinishReason(reason))
            case ("failed", str(message), "context" | "request" | "internal" as kind):
                return FailedEvent(self._generation_id, message, kind)
        raise ProtocolError(f"an event that cannot be understood: {item!r:.80}")


def _pack_logprob(logprob: TokenLogprob | None) -> tuple[Any, ...] | None:
    return None if logprob is None else (logprob.token_id, logprob.logprob, logprob.top)


def _unpack_logprob(value: Any) -> TokenLogprob | None:
    match value:
        case None:
            return None
        case (int(token_id), float(logprob), tuple(top)):
            return TokenLogprob(token_id, logprob, top)
    raise ProtocolError(f"a log probability that cannot be understood: {value!r:.80}")

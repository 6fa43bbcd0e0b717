"""What daemon, zygote and workers say to each other, as dataclasses, and as values that msgpack knows.

Owns: the vocabulary and its coding. Knows nothing of sockets. Pure.

A message is ``[tag, field, ...]``. Generations go by a small number (*handle*) that the daemon chooses and
never uses twice, so that events of a cancelled generation cannot be taken for those of a later one of the
same id. A step's events travel as one ``Events``: four integers for a plain token, whatever the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sllmd.core.errors import ProtocolError
from sllmd.core.ids import GenerationId
from sllmd.engine.protocol import (
    EngineEvent,
    EngineOptions,
    EngineStats,
    FailedEvent,
    FinishedEvent,
    FinishReason,
    GenerationState,
    PrefilledEvent,
    Sampling,
    TokenEvent,
    TokenLogprob,
)

# -- daemon -> zygote ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fork:
    """Fork a worker; with it come its socket and the pipe for its output."""

    worker_id: int


# -- zygote -> daemon ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ZygoteReady:
    """Imports are done; forks are cheap from here on."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Forked:
    """A worker exists; with it comes its pidfd."""

    worker_id: int
    pid: int


@dataclass(frozen=True, slots=True)
class ForkFailed:
    """The system gives no further process."""

    worker_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Exited:
    """A worker is reaped; ``exit_code`` is negative for a signal."""

    worker_id: int
    exit_code: int


# -- daemon -> worker ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attach:
    """Become a replica; with it come the slabs' descriptors, partition after partition."""

    manifest_json: str
    partitions: tuple[tuple[int, int, int], ...]
    """Per partition: span bytes, slab bytes, number of descriptors."""
    options: EngineOptions
    devices: tuple[str, ...]
    fake_json: str
    """FakeSettings, for the fake engine."""


@dataclass(frozen=True, slots=True)
class Progress:
    """So many bytes of each partition are filled, counted from its start."""

    bytes_ready: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Begin:
    """All memory is filled."""


@dataclass(frozen=True, slots=True)
class Add:
    """Run a generation."""

    handle: int
    state: GenerationState


@dataclass(frozen=True, slots=True)
class Cancel:
    """Forget a generation."""

    handle: int


@dataclass(frozen=True, slots=True)
class Export:
    """Answer with ``Exported``."""

    request: int
    handle: int
    stop: bool


@dataclass(frozen=True, slots=True)
class Prefill:
    """Warm the cache; answer with ``Prefilled`` or ``Refused``."""

    request: int
    state: GenerationState


@dataclass(frozen=True, slots=True)
class AskStats:
    """Answer with ``Stats``."""

    request: int


@dataclass(frozen=True, slots=True)
class Threads:
    """Run further steps on so many threads."""

    count: int


@dataclass(frozen=True, slots=True)
class Sleep:
    """Give back what the engine holds; nothing runs on it. Answer with ``Asleep``."""


@dataclass(frozen=True, slots=True)
class Wake:
    """Build the engine anew over the memory that is mapped already; answer with ``Ready``."""

    devices: tuple[str, ...]
    threads: int
    """0: as it was attached with."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Exit."""


# -- worker -> daemon ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiting:
    """Warm, and nobody's yet."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """The memory is mapped."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine serves."""

    stages_seconds: dict[str, float]
    context_tokens: int
    """Longest prompt + completion that fits; 0: no limit."""


@dataclass(frozen=True, slots=True)
class Asleep:
    """The engine is gone, and what it held; the memory is still mapped."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker's last words: it exits because of this."""

    message: str
    hint: str | None


@dataclass(frozen=True, slots=True)
class Exported:
    """A state, or None: no such generation."""

    request: int
    state: GenerationState | None


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The cache is warm."""

    request: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that the engine does not take."""

    request: int
    message: str


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot."""

    request: int
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class Events:
    """All events of one step, in order; none of them when a step only made progress.

    ``tokens`` holds handle, index, token id, finish code per plain token. ``others`` holds the rest:
    how many plain tokens come before it, its kind, its handle, its fields.
    """

    tokens: Sequence[int]
    others: Sequence[tuple[Any, ...]]


Message = (
    Fork
    | ZygoteReady
    | Forked
    | ForkFailed
    | Exited
    | Attach
    | Progress
    | Begin
    | Add
    | Cancel
    | Export
    | Prefill
    | AskStats
    | Threads
    | Sleep
    | Wake
    | Stop
    | Waiting
    | Mapped
    | Ready
    | Asleep
    | Failed
    | Exported
    | Prefilled
    | Refused
    | Stats
    | Events
)

_TYPES: tuple[type[Any], ...] = Message.__args__
_TAGS: dict[type[Any], int] = {kind: tag for tag, kind in enumerate(_TYPES)}
_FIELDS: tuple[tuple[str, ...], ...] = tuple(tuple(f.name for f in fields(kind)) for kind in _TYPES)


def encode(message: Message) -> list[Any]:
    """``message`` as a value that msgpack knows."""
    tag = _TAGS[type(message)]
    return [tag, *(_pack(getattr(message, name)) for name in _FIELDS[tag])]


def decode(value: Any) -> Message:
    """The message in ``value``; ProtocolError when there is none."""
    try:
        tag, *values = value
        names = _FIELDS[tag]
        if len(values) != len(names):
            raise ProtocolError(f"a {_TYPES[tag].__name__} has {len(names)} fields, {len(values)} came")
        unpacked = [
            _UNPACK[name](item) if name in _UNPACK else item for name, item in zip(names, values, strict=True)
        ]
        message: Message = _TYPES[tag](*unpacked)
    except (TypeError, ValueError, IndexError) as error:
        raise ProtocolError(f"a frame holds no message: {error}") from error
    return message


def _pack(value: Any) -> Any:
    if isinstance(value, GenerationState):
        return [value.generation_id, value.prompt_ids, _pack(value.sampling), value.output_ids]
    if isinstance(value, EngineOptions | EngineStats | Sampling):
        return [getattr(value, f.name) for f in fields(value)]
    return value


def _unpack_state(value: Any) -> GenerationState:
    generation_id, prompt_ids, sampling, output_ids = value
    return GenerationState(generation_id, list(prompt_ids), Sampling(*sampling), list(output_ids))


_UNPACK: dict[str, Callable[[Any], Any]] = {
    "state": lambda value: None if value is None else _unpack_state(value),
    "options": lambda value: EngineOptions(*value),
    "stats": lambda value: EngineStats(*value),
}

# -- events --------------------------------------------------------------------------------------

_FINISH_REASONS: tuple[FinishReason | None, ...] = (None, FinishReason.STOP, FinishReason.LENGTH)
_FINISH_CODES = {reason: code for code, reason in enumerate(_FINISH_REASONS)}
_TOKEN, _PREFILLED, _FINISHED, _FAILED = range(4)


def pack_events(events: Iterable[EngineEvent], handles: Mapping[GenerationId, int]) -> Events:
    """One message for a step's events. Those of generations without a handle are left out."""
    tokens: list[int] = []
    others: list[tuple[Any, ...]] = []
    for event in events:
        handle = handles.get(event.generation_id)
        if handle is None:
            continue
        if isinstance(event, TokenEvent) and event.logprob is None:
            tokens += (handle, event.index, event.token_id, _FINISH_CODES[event.finish_reason])
        else:
            others.append((len(tokens) // 4, *_pack_other(event, handle)))
    return Events(tokens, others)


def unpack_events(
    message: Events, generation_ids: Mapping[int, GenerationId]
) -> Iterator[tuple[int, EngineEvent]]:
    """Handle and event, in the order of the step; ProtocolError when the message is none.

    Events of handles that are not in ``generation_ids`` (cancelled since) are left out.
    """
    tokens, others = message.tokens, iter(message.others)
    try:
        other = next(others, None)
        for position in range(len(tokens) // 4):
            while other is not None and other[0] <= position:
                yield from _unpack_other(other, generation_ids)
                other = next(others, None)
            handle, index, token_id, code = tokens[4 * position : 4 * position + 4]
            generation_id = generation_ids.get(handle)
            if generation_id is not None:
                yield handle, TokenEvent(generation_id, index, token_id, _FINISH_REASONS[code])
        while other is not None:
            yield from _unpack_other(other, generation_ids)
            other = next(others, None)
    except (TypeError, ValueError, IndexError) as error:
        raise ProtocolError(f"a worker's events cannot be understood: {error}") from error


def _pack_other(event: EngineEvent, handle: int) -> tuple[Any, ...]:
    match event:
        case TokenEvent():
            code = _FINISH_CODES[event.finish_reason]
            return (_TOKEN, handle, event.index, event.token_id, code, _pack_logprob(event.logprob))
        case PrefilledEvent():
            prompt = event.prompt_logprobs
            logprobs = None if prompt is None else [_pack_logprob(logprob) for logprob in prompt]
            return (_PREFILLED, handle, event.prompt_tokens, event.reused_tokens, event.seconds, logprobs)
        case FinishedEvent():
            return (_FINISHED, handle, _FINISH_CODES[event.finish_reason])
        case FailedEvent():
            return (_FAILED, handle, event.message, event.kind)


def _unpack_other(
    value: Sequence[Any], generation_ids: Mapping[int, GenerationId]
) -> Iterator[tuple[int, EngineEvent]]:
    _position, kind, handle, *rest = value
    generation_id = generation_ids.get(handle)
    if generation_id is None:
        return
    if kind == _TOKEN:
        index, token_id, code, logprob = rest
        reason = _FINISH_REASONS[code]
        yield handle, TokenEvent(generation_id, index, token_id, reason, _unpack_logprob(logprob))
    elif kind == _PREFILLED:
        count, reused, seconds, packed = rest
        logprobs = None if packed is None else tuple(_unpack_logprob(logprob) for logprob in packed)
        yield handle, PrefilledEvent(generation_id, count, reused, seconds, logprobs)
    elif kind == _FINISHED:
        yield handle, FinishedEvent(generation_id, FinishReason(_FINISH_REASONS[rest[0]] or ""))
    elif kind == _FAILED:
        message, kind_of_failure = rest
        yield handle, FailedEvent(generation_id, str(message), kind_of_failure)
    else:
        raise ValueError(f"unknown kind of event {kind!r}")


def _pack_logprob(logprob: TokenLogprob | None) -> tuple[Any, ...] | None:
    return None if logprob is None else (logprob.token_id, logprob.logprob, logprob.top)


def _unpack_logprob(value: Sequence[Any] | None) -> TokenLogprob | None:
    return None if value is None else TokenLogprob(value[0], value[1], tuple(value[2]))

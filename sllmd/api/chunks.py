"""The bytes of a stream's events. Pure.

What stays the same over a stream (id, created, model, the shape around the text) is serialised once; per
token only the text is escaped and put in between, since this runs for every token of every stream.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any, Protocol

from sllmd.api.logprobs import LegacyLogprobs, chat_content
from sllmd.roles.generation import Delta, TextLogprob, Usage

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keepalive\n\n"


def compact(value: Any) -> str:
    """JSON without spaces; never NaN or Infinity."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def event(value: Any) -> bytes:
    """``value`` as one server-sent event."""
    return f"data: {compact(value)}\n\n".encode()


@dataclass(frozen=True, slots=True)
class StreamShape:
    """What every event of one stream has in common."""

    completion_id: str
    created: int
    model: str
    include_usage: bool = False
    continuous_usage: bool = False


class Account(Protocol):
    """What a generation tells of itself besides its deltas."""

    @property
    def usage(self) -> Usage:
        """Its tokens until now."""

    @property
    def prompt_logprobs(self) -> tuple[TextLogprob | None, ...] | None:
        """One per prompt token, once the first delta is there and if they were asked for."""


class Echo(Protocol):
    """A prompt that is repeated at the start of its completion."""

    @property
    def text(self) -> str:
        """As the client sent it, or as its ids read."""

    def logprobs(self, generation: Account) -> dict[str, Any]:
        """Of the prompt's tokens; there once the first delta is."""


class Chunks(Protocol):
    """The events of one endpoint's stream."""

    def opening(self) -> bytes:
        """What follows the headers at once."""

    def delta(self, index: int, delta: Delta, generation: Account) -> bytes:
        """The events of one delta of one choice; may be empty."""

    def closing(self, usage: dict[str, Any]) -> bytes:
        """What stands before ``[DONE]``."""


class _Envelope:
    """The parts around a choice."""

    def __init__(self, shape: StreamShape, kind: str) -> None:
        self._shape = shape
        head = {
            "id": shape.completion_id,
            "object": kind,
            "created": shape.created,
            "model": shape.model,
        }
        self._before_choices = f'data: {compact(head)[:-1]},"choices":['
        self._before_choice = f'{self._before_choices}{{"index":'
        self._after = ',"usage":null}\n\n' if shape.include_usage else "}\n\n"

    def choice(self, index: int, inside: str, generation: Account | None) -> str:
        """One event with one choice, ``inside`` being its keys after ``index``."""
        after = self._after
        if self._shape.continuous_usage and generation is not None:
            after = f',"usage":{compact(usage_of([generation], [True]))}}}\n\n'
        return f"{self._before_choice}{index},{inside}}}]{after}"

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last event, with the usage and no choice; none when it was not asked for."""
        if not self._shape.include_usage:
            return b""
        return f'{self._before_choices}],"usage":{compact(usage)}}}\n\n'.encode()


class CompletionChunks:
    """Events of /v1/completions: the same objects as without a stream."""

    def __init__(self, shape: StreamShape, *, logprobs: bool, echoes: Sequence[Echo | None]) -> None:
        self._envelope = _Envelope(shape, "text_completion")
        self._echoes = list(echoes)
        self._logprobs = [
            LegacyLogprobs(len(echo.text) if echo else 0) if logprobs else None for echo in echoes
        ]

    def opening(self) -> bytes:
        """Nothing: the first event has text."""
        return b""

    def delta(self, index: int, delta: Delta, generation: Account) -> bytes:
        """The echoed prompt if it is still to be said, then the text."""
        events = self._echo(index, generation)
        if delta.text or delta.tokens or delta.finish_reason:
            logprobs = self._logprobs[index]
            said = compact(logprobs.of_output(delta.tokens)) if logprobs and delta.tokens else "null"
            events += self._choice(index, delta.text, said, delta.finish_reason, generation)
        return events.encode()

    def closing(self, usage: dict[str, Any]) -> bytes:
        """The usage, when asked for."""
        return self._envelope.usage(usage)

    def _echo(self, index: int, generation: Account) -> str:
        echo, self._echoes[index] = self._echoes[index], None
        if echo is None:
            return ""
        said = compact(echo.logprobs(generation)) if self._logprobs[index] else "null"
        return self._choice(index, echo.text, said, None, generation)

    def _choice(
        self, index: int, text: str, logprobs: str, finish_reason: str | None, generation: Account
    ) -> str:
        reason = f'"{finish_reason}"' if finish_reason else "null"
        inside = f'"text":{encode_basestring(text)},"logprobs":{logprobs},"finish_reason":{reason}'
        return self._envelope.choice(index, inside, generation)


class ChatChunks:
    """Events of /v1/chat/completions: a role, pieces of content, an empty last one with the reason."""

    def __init__(self, shape: StreamShape, *, choices: int, logprobs: bool) -> None:
        self._envelope = _Envelope(shape, "chat.completion.chunk")
        self._choices = choices
        self._logprobs = logprobs

    def opening(self) -> bytes:
        """The role of every choice."""
        inside = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        return "".join(self._envelope.choice(index, inside, None) for index in range(self._choices)).encode()

    def delta(self, index: int, delta: Delta, generation: Account) -> bytes:
        """A piece of content, and the end."""
        events = ""
        if delta.text or delta.tokens:
            logprobs = "null"
            if self._logprobs and delta.tokens:
                logprobs = compact({"content": chat_content(delta.tokens), "refusal": None})
            content = encode_basestring(delta.text)
            inside = f'"delta":{{"content":{content}}},"logprobs":{logprobs},"finish_reason":null'
            events = self._envelope.choice(index, inside, generation)
        if delta.finish_reason:
            inside = f'"delta":{{}},"logprobs":null,"finish_reason":"{delta.finish_reason}"'
            events += self._envelope.choice(index, inside, generation)
        return events.encode()

    def closing(self, usage: dict[str, Any]) -> bytes:
        """The usage, when asked for."""
        return self._envelope.usage(usage)


def usage_of(generations: Sequence[Account], counts_prompt: Sequence[bool]) -> dict[str, Any]:
    """Usage over ``generations``; the prompt of several choices counts once, with its first."""
    firsts = [g for g, counts in zip(generations, counts_prompt, strict=True) if counts]
    prompt_tokens = sum(generation.usage.prompt_tokens for generation in firsts)
    completion_tokens = sum(generation.usage.completion_tokens for generation in generations)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": sum(generation.usage.cached_tokens for generation in firsts)
        },
    }

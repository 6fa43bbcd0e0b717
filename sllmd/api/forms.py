"""How a stream is written, as a value that another node can write it from. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal

from sllmd.api.chunks import Account, ChatChunks, Chunks, CompletionChunks, StreamShape
from sllmd.core.errors import ProtocolError
from sllmd.wire.codec import pack_payload, unpack_payload

FORM_BYTES_MAX = 512 * 1024
"""An echoed prompt may be in it."""


@dataclass(frozen=True, slots=True)
class EchoedText:
    """A prompt that is repeated, without log probabilities."""

    text: str

    def logprobs(self, generation: Account) -> dict[str, Any]:  # noqa: ARG002
        """A stream that echoes with log probabilities cannot be resumed."""
        raise AssertionError("a stream that echoes with log probabilities is not kept")


@dataclass(frozen=True, slots=True)
class Form:
    """What makes the chunks of a stream."""

    kind: Literal["completion", "chat"]
    shape: StreamShape
    logprobs: bool
    counts_prompt: tuple[bool, ...]
    echoes: tuple[str | None, ...] = ()
    """One for each choice of a completion."""

    def chunks(self) -> Chunks:
        """From its beginning."""
        if self.kind == "chat":
            return ChatChunks(self.shape, choices=len(self.counts_prompt), logprobs=self.logprobs)
        echoes = [None if text is None else EchoedText(text) for text in self.echoes]
        return CompletionChunks(self.shape, logprobs=self.logprobs, echoes=echoes)

    def pack(self) -> bytes:
        """As it travels. Raises ProtocolError when it is too long to."""
        value = (self.kind, astuple(self.shape), self.logprobs, self.counts_prompt, self.echoes)
        return pack_payload(value, FORM_BYTES_MAX)

    @classmethod
    def unpack(cls, packed: bytes) -> Form:
        """The inverse; raises ProtocolError."""
        match unpack_payload(packed):
            case (
                "completion" | "chat" as kind,
                (str(completion_id), int(created), str(model), bool(usage), bool(continuous)),
                bool(logprobs),
                tuple(counts_prompt),
                tuple(echoes),
            ):
                shape = StreamShape(completion_id, created, model, usage, continuous)
                return cls(kind, shape, logprobs, counts_prompt, echoes)
        raise ProtocolError("a stream's form that cannot be understood")


def resumable(logprobs: bool, echoes: Sequence[str | None]) -> bool:
    """Whether another node could write it: log probabilities of an echoed prompt are computed once only."""
    return not (logprobs and any(text is not None for text in echoes))

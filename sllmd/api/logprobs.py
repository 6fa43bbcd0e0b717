"""Log probabilities in OpenAI's two forms. Pure.

JSON has no infinity: what is impossible or nearly so is -9999.0.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from sllmd.roles.generation import TextLogprob

LOGPROB_MIN = -9999.0


class LegacyLogprobs:
    """The form of /v1/completions for one choice, piece by piece; offsets count characters of its text."""

    def __init__(self, offset_characters: int = 0) -> None:
        self._offset = offset_characters
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def of_output(self, tokens: Sequence[TextLogprob]) -> dict[str, Any]:
        """The next tokens of the output."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._utf8.decode(token.raw))
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [clamped(token.logprob) for token in tokens],
            "top_logprobs": [_alternatives(token) for token in tokens],
            "text_offset": offsets,
        }


def legacy_prompt(
    texts: Sequence[str], offsets: Sequence[int], logprobs: Sequence[TextLogprob | None]
) -> dict[str, Any]:
    """An echoed prompt. Where nothing predicts a token (the first), null in both lists."""
    return {
        "tokens": list(texts),
        "token_logprobs": [None if token is None else clamped(token.logprob) for token in logprobs],
        "top_logprobs": [None if token is None else _alternatives(token) for token in logprobs],
        "text_offset": list(offsets),
    }


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several pieces of one choice's legacy form as one."""
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [item for part in parts for item in part[name]] for name in names}


def chat_content(tokens: Sequence[TextLogprob]) -> list[dict[str, Any]]:
    """The form of /v1/chat/completions: items of ``logprobs.content``."""
    return [
        {
            **_chat_token(token.text, token.raw, token.logprob),
            "top_logprobs": [_chat_token(*alternative) for alternative in token.top],
        }
        for token in tokens
    ]


def clamped(logprob: float) -> float:
    """``logprob`` as JSON can say it; a NaN is the least, too, since no comparison holds for it."""
    return max(LOGPROB_MIN, logprob)


def _alternatives(token: TextLogprob) -> dict[str, float]:
    """The most likely ones and the chosen one; of two tokens with one text the likelier counts."""
    found: dict[str, float] = {}
    for text, _, logprob in token.top:
        found.setdefault(text, clamped(logprob))
    found.setdefault(token.text, clamped(token.logprob))
    return found


def _chat_token(text: str, raw: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": clamped(logprob), "bytes": list(raw)}

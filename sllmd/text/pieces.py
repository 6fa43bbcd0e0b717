"""What bytes a token adds to a text, by the kind of decoder its tokenizer has.

1. Byte-level decoders (GPT-2, Llama 3, Qwen, SmolLM): a token is its bytes, whatever stands around it.
2. Byte-fallback tokens (``<0xE2>``, SentencePiece models): one byte.
3. All others: what decoding with and without the token differs by, given a few tokens before it, since
   decoders strip a leading space or join words by looking at their neighbours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from functools import cached_property

import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Pieces:
    """Token -> bytes. What does not depend on context is remembered, at most once per vocabulary entry."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        kinds = _decoder_kinds(json.loads(inner.to_str()).get("decoder"))
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._known: dict[int, bytes] = {}
        self.token_bytes_max = max((len(token.encode()) for token in inner.get_vocab()), default=1)
        """Length of the longest token."""
        added = inner.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)

    def added_bytes(self, context: Collection[int], token_id: int) -> bytes:
        """The bytes that ``token_id`` adds after ``context``; none for an id without a token."""
        known = self._known.get(token_id)
        if known is not None:
            return known
        token = self._inner.id_to_token(token_id)
        if token is None:
            return b""
        raw = self._bytes_alone(token)
        if raw is not None:
            self._known[token_id] = raw
            return raw
        before_characters = len(self._decode([*context]))
        return self._decode([*context, token_id])[before_characters:].encode()

    def token_bytes(self, token_id: int) -> bytes:
        """A token's bytes in the middle of a text."""
        return self.added_bytes((self._anchor_id,), token_id)

    @cached_property
    def _anchor_id(self) -> int:
        """A token with ordinary text, to stand before one whose text in mid-sentence is asked for."""
        candidates = (
            token_id for token_id in range(self._inner.get_vocab_size()) if token_id not in self.special_ids
        )
        return next((token_id for token_id in candidates if self._decode([token_id]).isalnum()), 0)

    def _bytes_alone(self, token: str) -> bytes | None:
        if self._byte_level:
            try:
                return bytes(_BYTE_OF_CHARACTER[character] for character in token)
            except KeyError:
                return token.encode()
        match = _BYTE_TOKEN.fullmatch(token) if self._byte_fallback else None
        return bytes([int(match[1], 16)]) if match else None

    def _decode(self, ids: list[int]) -> str:
        return self._inner.decode(ids, skip_special_tokens=False)


def _decoder_kinds(decoder: dict[str, object] | None) -> frozenset[str]:
    """Types of a tokenizer.json's decoder, of all members where it is a sequence."""
    if decoder is None:
        return frozenset()
    members = decoder.get("decoders")
    if isinstance(members, list):
        return frozenset().union(*(_decoder_kinds(member) for member in members))
    return frozenset([str(decoder.get("type"))])


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 is itself, the rest follows from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + place): byte for place, byte in enumerate(rest)})
    return table


_BYTE_OF_CHARACTER = _byte_of_character()

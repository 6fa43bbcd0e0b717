"""A model's tokenizer, and the few facts of its configuration that concern text.

Reads tokenizer.json (through ``tokenizers``: its post-processor decides on begin-of-sequence tokens),
tokenizer_config.json, generation_config.json, config.json and chat_template.jinja from a checkpoint's
directory. Never transformers: that would pull torch into the daemon.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from sllmd.core.context import context_tokens
from sllmd.core.errors import InvalidRequest, MalformedCheckpoint
from sllmd.text.chat import ChatTemplate
from sllmd.text.pieces import Pieces

CONTEXT_PIECES = 4
"""Tokens before one that may bear on its text: enough for every decoder that looks at its neighbours."""


@dataclass(frozen=True, slots=True)
class TextFacts:
    """What config files say about text."""

    vocabulary_size: int
    context_tokens: int
    stop_token_ids: tuple[int, ...]
    special_tokens: Mapping[str, str]
    """``bos_token`` and its kin -> content, as chat templates name them."""
    chat_template: str | None


class Tokenizer:
    """Text to ids and back for one model. Holds no state of any generation."""

    def __init__(self, inner: tokenizers.Tokenizer, facts: TextFacts) -> None:
        self._inner = inner
        self._facts = facts
        self._pieces = Pieces(inner)
        self.chat_template = ChatTemplate(facts.chat_template, facts.special_tokens)
        self.vocabulary_size = facts.vocabulary_size
        self.context_tokens = facts.context_tokens
        self.stop_token_ids = facts.stop_token_ids

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """The tokenizer of the checkpoint in ``directory``. Raises MalformedCheckpoint."""
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise MalformedCheckpoint(
                f"{directory.name} has no tokenizer.json",
                hint="save the model with a fast tokenizer and import it again with --replace",
            )
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing narrower on a malformed file
            raise MalformedCheckpoint(f"{path.name} cannot be read: {error}") from error
        inner.no_truncation()
        inner.no_padding()
        return cls(inner, _read_facts(directory, inner))

    @property
    def document_start_ids(self) -> tuple[int, ...]:
        """What an empty prompt becomes: the begin- or else the end-of-sequence token; may be empty."""
        ids = self.encode("")
        if ids:
            return tuple(ids)
        for name in ("bos_token", "eos_token"):
            token_id = self._inner.token_to_id(self._facts.special_tokens.get(name, ""))
            if token_id is not None:
                return (token_id,)
        return self.stop_token_ids[:1]

    @property
    def token_bytes_max(self) -> int:
        """No token stands for more bytes of text than this (normalisation aside)."""
        return self._pieces.token_bytes_max

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of ``text``; ``special``: let the post-processor add its tokens. Raises InvalidRequest.

        A batch of one: unlike ``encode`` it lets go of the interpreter, so that in a thread nobody waits.
        """
        try:
            return self._inner.encode_batch([text], add_special_tokens=special)[0].ids
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequest("the text holds a lone surrogate, which is not valid Unicode") from error

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ``ids``, as ``tokenizers`` decodes the whole of it; a batch of one, as in ``encode``."""
        return self._inner.decode_batch([ids], skip_special_tokens=skip_special)[0]

    def is_special(self, token_id: int) -> bool:
        """Whether ``token_id`` is a control token that has no text of its own."""
        return token_id in self._pieces.special_ids

    def piece(self, context: Collection[int], token_id: int, *, skip_special: bool = True) -> bytes:
        """The bytes that ``token_id`` adds to a text whose last tokens are ``context``."""
        if skip_special and token_id in self._pieces.special_ids:
            return b""
        return self._pieces.added_bytes(context, token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """A token's own bytes, as in the middle of a text; they may be part of a code point."""
        return self._pieces.token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        """A token for a client to read; one that is not valid UTF-8 is written ``bytes:\\xf0\\x9f``."""
        raw = self.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def read_context_tokens(directory: Path) -> int:
    """Context of the model in ``directory``, without its tokenizer. Raises MalformedCheckpoint."""
    return context_tokens(_text_config(_read_json(directory / "config.json")))


def _read_facts(directory: Path, inner: tokenizers.Tokenizer) -> TextFacts:
    config = _read_json(directory / "config.json")
    text_config = _text_config(config)
    tokenizer_config = _read_json(directory / "tokenizer_config.json")
    generation_config = _read_json(directory / "generation_config.json")
    special_tokens = _special_tokens(tokenizer_config)
    vocabulary_size = text_config.get("vocab_size") or inner.get_vocab_size()
    if type(vocabulary_size) is not int:
        raise MalformedCheckpoint(f"vocab_size in config.json is no number: {vocabulary_size!r}")
    return TextFacts(
        vocabulary_size=vocabulary_size,
        context_tokens=context_tokens(text_config),
        stop_token_ids=_stop_token_ids(
            (generation_config, config, text_config), inner.token_to_id(special_tokens.get("eos_token", ""))
        ),
        special_tokens=special_tokens,
        chat_template=_chat_template(directory, tokenizer_config),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise MalformedCheckpoint(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise MalformedCheckpoint(f"{path.name} does not hold a JSON object")
    return value


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about text; models that also see or hear have it apart. Raises MalformedCheckpoint."""
    text_config = config.get("text_config") or config
    if not isinstance(text_config, Mapping):
        raise MalformedCheckpoint("text_config in config.json is no JSON object")
    return text_config


def _stop_token_ids(configs: Sequence[Mapping[str, Any]], eos_token_id: int | None) -> tuple[int, ...]:
    """As transformers' generate: generation_config.json wins over config.json; else the tokenizer's."""
    for config in configs:
        said = config.get("eos_token_id")
        if isinstance(said, int):
            return (said,)
        if isinstance(said, list) and said:
            if not all(type(token_id) is int for token_id in said):
                raise MalformedCheckpoint(f"eos_token_id holds what is no token id: {said}")
            return tuple(said)
    return () if eos_token_id is None else (eos_token_id,)


def _special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name, value in tokenizer_config.items():
        if not name.endswith("_token"):
            continue
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            found[name] = content
    return found


def _chat_template(directory: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise MalformedCheckpoint(f"{path.name} is not UTF-8: {error}") from error
    said = tokenizer_config.get("chat_template")
    if isinstance(said, list):
        by_name = {entry.get("name"): entry.get("template") for entry in said if isinstance(entry, dict)}
        said = by_name.get("default")
    return said if isinstance(said, str) else None

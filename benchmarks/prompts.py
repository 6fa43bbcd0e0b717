"""Prompts of an exact number of tokens that no server has seen before: no prefix cache helps anybody."""

from __future__ import annotations

import random
from functools import cache

from tokenizers import Tokenizer

from benchmarks.models import demo_directory

_WORDS = """
    time year people way day man thing woman life child world school state family student group country
    problem hand part place case week company system program question work government number night point
    home water room mother area money story fact month lot right study book eye job word business issue
    side kind head house service friend father power hour game line end member law car city community
    name
""".split()  # noqa: SIM905  (a list of them would be a page)


def prompt(tokens: int, seed: str) -> str:
    """A text of exactly ``tokens`` tokens of the demo model's tokenizer; another seed, another text."""
    choose = random.Random(seed)
    text = "".join(choose.choice(_single_token_words()) for _ in range(tokens))
    if len(_tokenizer().encode(text).ids) != tokens:
        raise RuntimeError(f"{text!r} is not {tokens} tokens")
    return text


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(demo_directory() / "tokenizer.json"))


@cache
def _single_token_words() -> tuple[str, ...]:
    words = tuple(f" {word}" for word in _WORDS if len(_tokenizer().encode(f" {word}").ids) == 1)
    if len(words) < len(_WORDS) // 2:
        raise RuntimeError("too few words are one token")
    return words


def vocabulary_size() -> int:
    """Ids of the demo model's tokenizer."""
    return int(_tokenizer().get_vocab_size())


def token_ids(tokens: int, seed: str) -> list[int]:
    """``prompt`` as ids."""
    return list(_tokenizer().encode(prompt(tokens, seed)).ids)

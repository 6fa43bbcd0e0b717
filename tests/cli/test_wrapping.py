"""Where lines break on a terminal."""

from __future__ import annotations

import pytest

from sllmd.cli.wrapping import WordWrap


def wrapped(pieces: list[str], width: int = 10) -> str:
    wrap = WordWrap(width)
    return "".join([*(wrap.push(piece) for piece in pieces), wrap.flush()])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three four", "one two \nthree four"),
        ("exactly te n", "exactly te\nn"),
        ("one\n two", "one\n two"),
        ("a" * 25, "a" * 25),
        ("x " + "a" * 25, "x \n" + "a" * 25),
        ("模型模型 模型", "模型模型 \n模型"),
        ("", ""),
    ],
)
def test_lines_break_between_words_however_the_text_comes(text: str, expected: str) -> None:
    assert wrapped([text]) == expected
    if max(map(len, text.split()), default=0) < 10:
        assert wrapped(list(text)) == expected


def test_only_a_word_that_may_go_on_is_held_back() -> None:
    wrap = WordWrap(10)
    assert [wrap.push(piece) for piece in ("He", "llo wor", "ld", "!\n")] == ["", "Hello ", "", "\nworld!\n"]
    assert wrap.flush() == ""

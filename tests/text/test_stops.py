import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllmd.text.stops import StopMatcher


@pytest.mark.parametrize(
    ("stops", "pieces", "said", "stopped"),
    [
        ((), ["a", "b"], ["a", "b", ""], False),
        (("END",), ["hello EN", "D there"], ["hello ", "", ""], True),
        (("END",), ["hello EN", "ough"], ["hello ", "ENough", ""], False),
        (("END",), ["hello EN"], ["hello ", "EN"], False),
        (("aab",), ["aa", "ab"], ["", "a", ""], True),
        (("abab",), ["ababab"], ["", ""], True),
        (("abcd", "bc"), ["abc", "d"], ["a", "", ""], True),
        (("abcd", "bc"), ["ab", "x"], ["", "abx", ""], False),
        (("\n\n",), ["a\n", "b\n", "\n"], ["a", "\nb", "", ""], True),
        (("🙂",), ["x🙂y"], ["x", ""], True),
        (("b", "ab"), ["zab"], ["z", ""], True),
    ],
)
def test_table(stops, pieces, said, stopped):
    matcher = StopMatcher(stops)
    assert [*map(matcher.push, pieces), matcher.flush()] == said
    assert matcher.stopped is stopped
    assert matcher.push("more") == ("" if stopped else "more")


def cut(text: str, stops: list[str]) -> str:
    """What the doc says, written the slow way."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


letters = st.text("ab", max_size=3)


@given(
    st.lists(letters, max_size=20), st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4)
)
def test_however_the_text_is_cut_the_result_is_the_same(pieces, stops):
    matcher = StopMatcher(stops)
    said = ""
    seen = ""
    for piece in pieces:
        said += matcher.push(piece)
        seen += piece
        assert seen.startswith(said)
        if not matcher.stopped:
            held = seen[len(said) :]
            assert held == max(
                (s[:k] for s in stops for k in range(len(s)) if seen.endswith(s[:k])), key=len, default=""
            )
    said += matcher.flush()
    assert said == cut("".join(pieces), stops)

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sllmd.text.stream import TextStream
from sllmd.text.tokenizer import TextFacts, Tokenizer
from tests.text.tokenizers_made import byte_fallback, byte_level, word_piece

FACTS = TextFacts(1000, 128, (2,), {}, None)
KINDS = {"byte_level": byte_level(), "byte_fallback": byte_fallback(), "word_piece": word_piece()}
TOKENIZERS = {name: Tokenizer(inner, FACTS) for name, inner in KINDS.items()}
BYTES = Tokenizer(byte_level(vocabulary_size=260), FACTS)
TEXT = "naïve café 漢字🙂 e\u0301 👩‍👩‍👧 done"


def run(tokenizer, ids, *, prompt_ids=(), stop=(), skip_special=True):
    stream = TextStream(tokenizer, prompt_ids=prompt_ids, stop=stop, skip_special=skip_special)
    pushed = [stream.push(token_id) for token_id in ids]
    return [*pushed, stream.flush()], stream


def test_one_byte_per_token_never_shows_half_a_code_point():
    ids = BYTES.encode(TEXT)
    assert len(ids) == len(TEXT.encode())
    pieces, _ = run(BYTES, ids)
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[TEXT.encode().index("漢".encode())] == ""


def test_an_unfinished_code_point_is_flushed_as_replacement():
    pieces, _ = run(BYTES, BYTES.encode("a🙂")[:-1])
    assert pieces == ["a", "", "", "", "\ufffd"]


def test_a_run_of_invalid_bytes_is_not_held_for_ever():
    continuation = next(i for i in range(300) if BYTES.token_bytes(i) == b"\x80")
    pieces, _ = run(BYTES, [continuation] * 50)
    assert pieces == ["\ufffd"] * 50 + [""]


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_of_an_encoding_comes_back(kind):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("the fox a 漢. a the🙂b", special=False)
    pieces, _ = run(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)


def test_a_completion_keeps_the_space_that_joins_it_to_its_prompt():
    tokenizer = TOKENIZERS["byte_fallback"]
    prompt_ids = tokenizer.encode("the fox")
    pieces, _ = run(tokenizer, tokenizer.encode("the fox", special=False), prompt_ids=prompt_ids)
    assert "".join(pieces) == " the fox"
    at_start, _ = run(tokenizer, tokenizer.encode("the fox", special=False), prompt_ids=[1])
    assert "".join(at_start) == "the fox"


def test_special_tokens_are_skipped_or_shown():
    user = BYTES.encode("<|user|>")
    ids = [*BYTES.encode("a"), *user, *BYTES.encode("b")]
    assert "".join(run(BYTES, ids)[0]) == "ab"
    assert "".join(run(BYTES, ids, skip_special=False)[0]) == "a<|user|>b"


def test_stop_strings_cross_tokens_and_leave_the_text():
    pieces, stream = run(BYTES, BYTES.encode("one.\n\ntwo"), stop=("\n\n",))
    assert "".join(pieces) == "one."
    assert stream.stopped
    assert stream.push(BYTES.encode("x")[0]) == ""


def test_ids_without_a_token_add_nothing():
    assert run(BYTES, [9999, *BYTES.encode("a")])[0] == ["", "a", ""]


@pytest.mark.parametrize("kind", ["byte_level", "word_piece"])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_deltas_are_the_full_decoding_whatever_the_ids(kind, data):
    tokenizer, inner = TOKENIZERS[kind], KINDS[kind]
    ids = data.draw(st.lists(st.integers(0, inner.get_vocab_size() - 1), max_size=40))
    skip = data.draw(st.booleans())
    pieces, _ = run(tokenizer, ids, skip_special=skip)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special=skip)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.integers(0, 30))
def test_byte_fallback_gives_any_text_back_after_any_prompt(text, split):
    tokenizer = TOKENIZERS["byte_fallback"]
    ids = tokenizer.encode(text, special=False)
    prompt_ids, output_ids = ids[:split], ids[split:]
    if "\ufffd" in tokenizer.decode(prompt_ids):
        return  # a prompt that ends within a code point
    pieces, _ = run(tokenizer, output_ids, prompt_ids=prompt_ids)
    assert tokenizer.decode(prompt_ids) + "".join(pieces) == tokenizer.decode(ids)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.text("ab ", min_size=1, max_size=3))
def test_streams_are_cut_where_the_whole_text_would_be(text, stop):
    text = text.encode("utf-8", "replace").decode() + "a b"
    pieces, stream = run(BYTES, BYTES.encode(text), stop=(stop,))
    assert "".join(pieces) == text.split(stop)[0]
    assert stream.stopped is (stop in text)

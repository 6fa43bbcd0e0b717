import asyncio
import subprocess
import sys
import time

import pytest
import tokenizers

from sllmd.core.errors import InvalidRequest, MalformedCheckpoint
from sllmd.text.tokenizer import Tokenizer
from tests.text.tokenizers_made import byte_fallback, byte_level, write_model_directory


def test_facts_come_from_the_files(tmp_path):
    tokenizer = Tokenizer.load(write_model_directory(tmp_path, byte_level()))
    assert tokenizer.context_tokens == 128
    assert tokenizer.vocabulary_size == 322
    assert tokenizer.stop_token_ids == (2,)
    assert tokenizer.chat_template.source


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [2, 3]}, {"max_position_embeddings": 8, "eos_token_id": 1}, (2, 3)),
        ({}, {"max_position_embeddings": 8, "eos_token_id": 1}, (1,)),
        (None, {"max_position_embeddings": 8}, (2,)),
        (None, {"text_config": {"max_position_embeddings": 8, "eos_token_id": 3}}, (3,)),
    ],
)
def test_stop_ids_are_those_of_generate(tmp_path, generation, config, expected):
    directory = write_model_directory(tmp_path, byte_level(), generation_config=generation, config=config)
    assert Tokenizer.load(directory).stop_token_ids == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": [1]}, "config.json does not hold a JSON object"),
        ({"config": {"text_config": "x"}}, "text_config"),
        ({"config": {"vocab_size": "x"}}, "vocab_size"),
        ({"generation_config": {"eos_token_id": ["a"]}}, "eos_token_id holds what is no token id"),
    ],
)
def test_files_that_do_not_do_are_named(tmp_path, changes, said):
    directory = write_model_directory(tmp_path, byte_level(), **changes)
    with pytest.raises(MalformedCheckpoint, match=said):
        Tokenizer.load(directory)


def test_a_chat_template_that_is_not_utf8_is_named(tmp_path):
    directory = write_model_directory(tmp_path, byte_level())
    (directory / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(MalformedCheckpoint, match=r"chat_template\.jinja is not UTF-8"):
        Tokenizer.load(directory)


async def test_others_go_on_while_a_thread_encodes_and_decodes(tmp_path):
    tokenizer = Tokenizer.load(write_model_directory(tmp_path, byte_level()))
    text = "the quick 🙂 " * 100_000
    ids = tokenizer.encode(text)
    for work in (lambda: tokenizer.encode(text), lambda: tokenizer.decode(ids)):
        working = asyncio.create_task(asyncio.to_thread(work))
        turns = 0
        while not working.done():
            await asyncio.sleep(0.002)
            turns += 1
        assert turns > 4


def test_the_longest_token_is_known_once_the_tokenizer_is_loaded(tmp_path):
    words = {f"word{number}": number for number in range(100_000)} | {"<unk>": 100_000, "漢字" * 20: 100_001}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer = Tokenizer.load(write_model_directory(tmp_path, inner))
    began = time.thread_time()
    assert tokenizer.token_bytes_max == 120
    assert time.thread_time() - began < 0.005


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00\xff", b'{"version": "1.0"'])
def test_a_broken_tokenizer_file_is_a_clear_error(tmp_path, content):
    directory = write_model_directory(tmp_path, byte_level())
    (directory / "tokenizer.json").write_bytes(content)
    with pytest.raises(MalformedCheckpoint, match=r"tokenizer\.json cannot be read"):
        Tokenizer.load(directory)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(MalformedCheckpoint, match=r"has no tokenizer\.json"):
        Tokenizer.load(directory)


def test_begin_of_sequence_is_the_post_processors_business(tmp_path):
    tokenizer = Tokenizer.load(write_model_directory(tmp_path, byte_fallback()))
    assert tokenizer.encode("a")[0] == 1
    assert tokenizer.encode("a", special=False)[0] != 1
    assert tokenizer.document_start_ids[0] == 1


def test_an_empty_prompt_starts_a_document(tmp_path):
    assert Tokenizer.load(write_model_directory(tmp_path, byte_level())).document_start_ids == (1,)


def test_tokens_by_themselves(tmp_path):
    plain = Tokenizer.load(write_model_directory(tmp_path / "a", byte_level(vocabulary_size=260)))
    first_of_smile = plain.encode("🙂")[0]
    assert plain.token_bytes(first_of_smile) == b"\xf0"
    assert plain.token_text(first_of_smile) == "bytes:\\xf0"
    assert plain.token_text(plain.encode("    ")[0]) == "    "
    fallback = Tokenizer.load(write_model_directory(tmp_path / "b", byte_fallback()))
    the = fallback.encode("the", special=False)
    assert "".join(map(fallback.token_text, the)) == " the"
    assert fallback.token_bytes(fallback.encode("🙂", special=False)[-1]) == b"\x82"


def test_lone_surrogates_are_the_callers_fault(tmp_path):
    tokenizer = Tokenizer.load(write_model_directory(tmp_path, byte_level()))
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        tokenizer.encode("a\ud800")


def test_no_heavy_library_is_imported():
    assert "sllmd.text.tokenizer" in sys.modules
    code = "import sys, sllmd.text.stream; print({'torch', 'transformers', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

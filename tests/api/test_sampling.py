"""Every field that says how to sample reaches the engine."""

from pathlib import Path
from typing import Any

import pytest

from sllmd.api.openai import CompletionRequest
from sllmd.api.parsing import parse_chat, parse_completion
from sllmd.api.sampling import chat_sampling, completion_sampling
from sllmd.api.settings import ApiSettings
from sllmd.engine.protocol import Sampling
from sllmd.text.tokenizer import Tokenizer
from tests.text.tokenizers_made import byte_level, write_model_directory

SETTINGS = ApiSettings()
EOS = 2

BOTH: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"temperature": 0.25}, {"temperature": 0.25}),
    ({"temperature": 0}, {"temperature": 0.0}),
    ({"top_p": 0.5}, {"top_p": 0.5}),
    ({"top_p": 0}, {"top_p": 1e-6}),
    ({"top_k": 7}, {"top_k": 7}),
    ({"top_k": -1}, {"top_k": 0}),
    ({"top_k": 10**9}, {"top_k": 322}),
    ({"min_p": 0.125}, {"min_p": 0.125}),
    ({"frequency_penalty": -1.5}, {"frequency_penalty": -1.5}),
    ({"presence_penalty": 1.5}, {"presence_penalty": 1.5}),
    ({"repetition_penalty": 1.25}, {"repetition_penalty": 1.25}),
    ({"logit_bias": {"5": -100, "9": 1.5}}, {"logit_bias": ((5, -100), (9, 1.5))}),
    ({"stop_token_ids": [7, 9]}, {"stop_token_ids": (EOS, 7, 9)}),
    ({"ignore_eos": True}, {"stop_token_ids": ()}),
    ({"ignore_eos": True, "stop_token_ids": [7]}, {"stop_token_ids": (7,)}),
]
OF_COMPLETIONS = [
    ({"logprobs": 0}, {"logprobs": 0}),
    ({"logprobs": 3}, {"logprobs": 3}),
    ({"echo": True}, {}),
    ({"echo": True, "logprobs": 3}, {"logprobs": 3, "prompt_logprobs": 3}),
]
OF_CHATS = [
    ({"logprobs": True}, {"logprobs": 0}),
    ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory: Path = tmp_path_factory.mktemp("model")
    return Tokenizer.load(write_model_directory(directory, byte_level(320)))


def expected(changes: dict[str, Any]) -> Sampling:
    return Sampling(**{"seed": 11, "max_tokens": 22, "stop_token_ids": (EOS,), **changes})


@pytest.mark.parametrize(("fields", "changes"), BOTH + OF_COMPLETIONS)
def test_completions(tokenizer: Tokenizer, fields: dict[str, Any], changes: dict[str, Any]) -> None:
    request = parse_completion({"model": "m", "prompt": "hi", **fields}, SETTINGS)
    assert completion_sampling(request, tokenizer, seed=11, max_tokens=22) == expected(changes)


@pytest.mark.parametrize(("fields", "changes"), BOTH + OF_CHATS)
def test_chats(tokenizer: Tokenizer, fields: dict[str, Any], changes: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "hi"}]
    request = parse_chat({"model": "m", "messages": messages, **fields}, SETTINGS)
    assert chat_sampling(request, tokenizer, seed=11, max_tokens=22) == expected(changes)


@pytest.mark.parametrize(("asked", "top_k"), [(-1, 0), (0, 0), (7, 7), (2**70, "all")])
def test_more_than_all_tokens_are_all(tokenizer, asked, top_k):
    """A worker is told of no number that its messages cannot hold."""
    request = CompletionRequest(model="m", top_k=asked)
    sampling = completion_sampling(request, tokenizer, seed=1, max_tokens=1)
    assert sampling.top_k == (tokenizer.vocabulary_size if top_k == "all" else top_k)

import json
from dataclasses import dataclass

import pytest

from sllmd.api.chunks import ChatChunks, CompletionChunks, StreamShape, event, usage_of
from sllmd.api.logprobs import LOGPROB_MIN, LegacyLogprobs, chat_content, clamped
from sllmd.api.sampling import choice_seed, room_for
from sllmd.core.errors import ContextLengthExceeded
from sllmd.engine.protocol import FinishReason
from sllmd.roles.generation import Delta, TextLogprob, Usage


@dataclass
class Account:
    usage: Usage
    prompt_logprobs: tuple[TextLogprob | None, ...] | None = None


def shape(**changes):
    return StreamShape("cmpl-1", 7, 'm"x', **changes)


def parsed(raw: bytes) -> list[dict]:
    events = raw.decode().split("\n\n")
    assert events.pop() == ""
    return [json.loads(one.removeprefix("data: ")) for one in events]


ACCOUNT = Account(Usage(prompt_tokens=3, completion_tokens=2))


@pytest.mark.parametrize(
    "text", ["", "a", '"', "\\", "\n\r\t\x00", "🙂é", "\u2028", "</script>", "data: x\n\n"]
)
def test_any_text_survives_its_envelope(text):
    completion = CompletionChunks(shape(), logprobs=False, echoes=[None])
    [chunk] = parsed(completion.delta(0, Delta(text, finish_reason=FinishReason.STOP), ACCOUNT))
    assert chunk == {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 7,
        "model": 'm"x',
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}],
    }
    chat = ChatChunks(shape(), choices=1, logprobs=False)
    chunks = parsed(chat.delta(0, Delta(text, finish_reason=FinishReason.LENGTH), ACCOUNT))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}


def test_a_delta_without_anything_to_say_says_nothing():
    assert CompletionChunks(shape(), logprobs=False, echoes=[None]).delta(0, Delta(""), ACCOUNT) == b""
    assert ChatChunks(shape(), choices=1, logprobs=False).delta(0, Delta(""), ACCOUNT) == b""


def test_usage_is_null_on_all_chunks_but_the_last():
    chunks = CompletionChunks(shape(include_usage=True), logprobs=False, echoes=[None])
    [chunk] = parsed(chunks.delta(0, Delta("a"), ACCOUNT))
    assert chunk["usage"] is None
    usage = usage_of([ACCOUNT, ACCOUNT], [True, False])
    [last] = parsed(chunks.closing(usage))
    assert last["choices"] == []
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (3, 4)
    assert CompletionChunks(shape(), logprobs=False, echoes=[None]).closing(usage) == b""


def test_offsets_follow_code_points_that_tokens_cut():
    tokens = [TextLogprob(f"t{i}", raw, -1.0) for i, raw in enumerate([b"a", b"\xf0\x9f", b"\x99\x82", b"b"])]
    logprobs = LegacyLogprobs()
    assert logprobs.of_output(tokens[:2])["text_offset"] == [0, 1]
    assert logprobs.of_output(tokens[2:])["text_offset"] == [1, 2]


def test_json_never_holds_what_json_has_not():
    assert clamped(float("-inf")) == clamped(float("nan")) == LOGPROB_MIN
    assert clamped(-0.5) == -0.5
    token = TextLogprob("a", b"a", float("-inf"), (("b", b"b", float("-inf")),))
    event({"content": chat_content([token]), "legacy": LegacyLogprobs().of_output([token])})
    with pytest.raises(ValueError, match="not JSON compliant"):
        event({"x": float("nan")})


@pytest.mark.parametrize(
    ("prompt", "wanted", "default", "room"),
    [
        (10, 5, 16, 5),
        (10, None, 16, 16),
        (95, None, 16, 5),
        (10, None, None, 90),
        (100, 0, 16, 0),
        (10, 90, None, 90),
    ],
)
def test_room_in_the_context(prompt, wanted, default, room):
    assert room_for(prompt, wanted, default, context_tokens=100, param="prompt") == room


@pytest.mark.parametrize(
    ("prompt", "wanted", "default", "said"),
    [
        (100, None, 16, r"116 tokens \(100 in the prompt; 16 for"),
        (100, None, None, r"101 tokens \(100"),
        (10, 91, 16, r"101 tokens \(10 in the prompt; 91 for"),
        (101, 0, 16, r"\(101 in the prompt;"),
    ],
)
def test_no_room(prompt, wanted, default, said):
    with pytest.raises(ContextLengthExceeded, match="maximum context length is 100 tokens.*" + said):
        room_for(prompt, wanted, default, context_tokens=100, param="prompt")


def test_choices_have_seeds_of_their_own_and_the_first_has_the_requests():
    seeds = [choice_seed(42, choice) for choice in range(128)]
    assert seeds[0] == 42
    assert len(set(seeds)) == 128
    assert all(0 <= seed < 2**63 for seed in seeds)

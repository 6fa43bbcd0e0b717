"""What happens to a generation survives the way to another node; nonsense does not arrive."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sllmd.core.errors import ProtocolError
from sllmd.core.ids import Digest, GenerationId, ModelName, NodeId, RequestId
from sllmd.engine.protocol import (
    FailedEvent,
    FinishedEvent,
    FinishReason,
    GenerationState,
    PrefilledEvent,
    Sampling,
    TokenEvent,
    TokenLogprob,
)
from sllmd.roles.transcript import (
    PROMPT_LOGPROBS_PER_ITEM,
    Transcript,
    pack_happening,
    pack_work,
    unpack_work,
)
from sllmd.roles.work import Granted, Happening, Work
from sllmd.wire.codec import pack_payload, unpack_payload
from sllmd.wire.rpc.settings import RpcSettings

G = GenerationId("g")
LOGPROB = TokenLogprob(7, -0.5, ((7, -0.5), (9, -2.25)))
WORK = Work(
    RequestId("r"),
    ModelName("m"),
    Digest("d"),
    GenerationState(
        G,
        [1, 2, 2**32 - 1],
        Sampling(seed=5, max_tokens=9, logit_bias=((3, -1.5),), logprobs=2, stop_token_ids=(4, 8)),
        [11, 12],
    ),
    keep_alive_seconds=float("inf"),
    key="team-a",
)
LIMIT = RpcSettings().item_bytes_max


def travel(happening: Happening) -> list[Happening]:
    transcript = Transcript(G)
    arrived = [
        transcript.read(unpack_payload(pack_payload(item, LIMIT))) for item in pack_happening(happening)
    ]
    return [each for each in arrived if each is not None]


def test_work_arrives_as_it_was() -> None:
    arrived = unpack_work(unpack_payload(pack_payload(pack_work(WORK), 1 << 20)))
    assert arrived == WORK
    assert unpack_work(pack_work(replace(WORK, keep_alive_seconds=None))).keep_alive_seconds is None


@pytest.mark.parametrize(
    "happening",
    [
        Granted(NodeId("n"), cold=True, tier="ssd", load_ms=1.5, estimate_ms=2.0, stages={"attach": 3.0}),
        TokenEvent(G, 0, 70_000),
        TokenEvent(G, 5, 1, FinishReason.STOP),
        TokenEvent(G, 6, 2, None, LOGPROB),
        TokenEvent(G, 7, 2, FinishReason.LENGTH, LOGPROB),
        PrefilledEvent(G, 3, 1, 0.25),
        PrefilledEvent(G, 3, 1, 0.25, (None, LOGPROB, LOGPROB)),
        FinishedEvent(G, FinishReason.LENGTH),
        FailedEvent(G, "too long", "context"),
    ],
)
def test_what_happens_arrives_as_it_was(happening: Happening) -> None:
    assert travel(happening) == [happening]


def test_log_probabilities_of_a_long_prompt_come_in_pieces() -> None:
    top = tuple((100_000 + i, -1.25 * i) for i in range(21))
    logprobs = (None, *(TokenLogprob(100_000, -1.25, top) for _ in range(3 * PROMPT_LOGPROBS_PER_ITEM)))
    event = PrefilledEvent(G, len(logprobs), 0, 0.5, logprobs)
    assert len(list(pack_happening(event))) == 5
    assert travel(event) == [event]


def test_a_plain_token_is_small() -> None:
    (item,) = pack_happening(TokenEvent(G, 1000, 100_000))
    assert len(pack_payload(item, LIMIT)) <= 9


@pytest.mark.parametrize(
    "item",
    [None, (), (1,), (1, "x"), ("token", 1), ("token", 1, 2, "why", None), ("token", 1, 2, None, 3), ("?",),
     ("granted", "n", True, "ssd", "soon", 0, {}), ("failed", "m", "odd"), ("prompt", (1,)), 7],
)  # fmt: skip
def test_nonsense_is_refused(item: Any) -> None:
    with pytest.raises(ProtocolError):
        Transcript(G).read(item)


@pytest.mark.parametrize("place", range(10))
def test_work_of_another_form_is_refused(place: int) -> None:
    packed: list[Any] = list(pack_work(WORK))
    packed[place] = object()
    with pytest.raises(ProtocolError):
        unpack_work(tuple(packed))
    assert pack_work(WORK)[0] == 2
    with pytest.raises(ProtocolError):
        unpack_work((1, *pack_work(WORK)[1:]))
    with pytest.raises(ProtocolError):
        unpack_work((*pack_work(WORK)[:7], b"odd", *pack_work(WORK)[8:]))

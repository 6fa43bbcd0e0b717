import msgpack
import pytest

from sllmd.core.errors import ProtocolError
from sllmd.core.ids import GenerationId
from sllmd.engine.messages import (
    Add,
    AskStats,
    Asleep,
    Attach,
    Begin,
    Cancel,
    Events,
    Exited,
    Export,
    Exported,
    Failed,
    Fork,
    Forked,
    ForkFailed,
    Mapped,
    Message,
    Prefill,
    Prefilled,
    Progress,
    Ready,
    Refused,
    Sleep,
    Stats,
    Stop,
    Waiting,
    Wake,
    ZygoteReady,
    decode,
    encode,
    pack_events,
    unpack_events,
)
from sllmd.engine.protocol import (
    EngineEvent,
    EngineOptions,
    EngineStats,
    FailedEvent,
    FinishedEvent,
    FinishReason,
    GenerationState,
    PrefilledEvent,
    Sampling,
    TokenEvent,
    TokenLogprob,
)

A, B = GenerationId("a"), GenerationId("b")
STATE = GenerationState(A, [1, 2**31], Sampling(7, 9, logit_bias=((5, -1.5),), stop_token_ids=(2,)), [4])

MESSAGES: list[Message] = [
    Fork(1),
    ZygoteReady(0.5),
    Forked(1, 4711),
    ForkFailed(1, "no"),
    Exited(1, 9),
    Attach("{}", ((4096, 4096, 1),), EngineOptions(threads=3), ("cpu",), "{}"),
    Progress((1, 2**40)),
    Begin(),
    Add(1, STATE),
    Cancel(1),
    Export(1, 2, True),
    Prefill(1, STATE),
    AskStats(1),
    Sleep(),
    Wake(("cuda:1",), 2),
    Stop(),
    Waiting(),
    Mapped(),
    Ready({"finish": 0.1}, 4096),
    Asleep(),
    Failed("why", None),
    Exported(1, STATE),
    Exported(1, None),
    Prefilled(1),
    Refused(1, "why"),
    Stats(1, EngineStats(1, 2, 3, 4, 5, 6, 7, "fake", 1, 4096)),
    Events((1, 2, 3, 0), ((0, 2, 1, 1),)),
]


def over_the_wire(value: object) -> object:
    return msgpack.unpackb(msgpack.packb(value), use_list=False)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_survive_the_wire(message: Message) -> None:
    assert decode(over_the_wire(encode(message))) == message


@pytest.mark.parametrize(
    "value", [None, 7, (), (99,), ("x",), (0,), (0, 1, 2), (8, 1, 5), (8, 1, (1, 2)), {"a": 1}, (-1.5, 0)]
)
def test_what_is_no_message_is_an_error(value: object) -> None:
    with pytest.raises(ProtocolError):
        decode(value)


def test_events_keep_their_order() -> None:
    logprob = TokenLogprob(5, -0.5, ((5, -0.5), (6, -1.0)))
    events: list[EngineEvent] = [
        TokenEvent(A, 3, 10),
        PrefilledEvent(B, 7, 2, 0.25, (None, logprob)),
        TokenEvent(B, 0, 11),
        TokenEvent(A, 4, 5, None, logprob),
        TokenEvent(B, 1, 12, FinishReason.STOP),
        TokenEvent(A, 5, 5, FinishReason.LENGTH, logprob),
        FinishedEvent(A, FinishReason.LENGTH),
        FailedEvent(B, "why", "context"),
    ]
    message = decode(over_the_wire(encode(pack_events(events, {A: 1, B: 2}))))
    assert isinstance(message, Events)
    handles = [1, 2, 2, 1, 2, 1, 1, 2]
    assert list(unpack_events(message, {1: A, 2: B})) == list(zip(handles, events, strict=True))


def test_events_of_unknown_generations_are_left_out() -> None:
    events: list[EngineEvent] = [TokenEvent(A, 0, 1), FailedEvent(A, "x"), TokenEvent(B, 0, 2)]
    packed = pack_events(events, {B: 2})
    assert len(packed.tokens) == 4
    assert not packed.others
    assert list(unpack_events(pack_events(events, {A: 1, B: 2}), {2: B})) == [(2, TokenEvent(B, 0, 2))]


@pytest.mark.parametrize(
    "message",
    [
        Events((1, 0, 5, 99), ()),
        Events((), ((0, 9, 1),)),
        Events((), ((0,),)),
        Events((), ((0, 2, 1, 0),)),
        Events((), (3,)),  # type: ignore[arg-type]
        Events(7, ()),  # type: ignore[arg-type]
    ],
)
def test_events_that_are_none_are_an_error(message: Events) -> None:
    with pytest.raises(ProtocolError):
        list(unpack_events(message, {1: A}))

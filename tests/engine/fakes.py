"""Checkpoints and generations for tests that run on the fake engine."""

from collections.abc import Iterable
from itertools import count

from sllmd.core.ids import Digest, GenerationId, ReplicaId
from sllmd.engine.protocol import EngineEvent, GenerationState, Sampling, TokenEvent
from sllmd.store.manifest import Manifest, Source

_numbers = count(1)


def next_replica_id() -> ReplicaId:
    return ReplicaId(f"fake-{next(_numbers)}")


def manifest(**fake: object) -> Manifest:
    return Manifest(
        format_version=1,
        digest=Digest("f" * 32),
        source=Source(kind="fake", location="test", fingerprint="0"),
        architecture="fake",
        config={"vocab_size": 100, "fake": fake},
        tensors=(),
        ties={},
        partitions=(),
    )


def state(
    name: str = "g", prompt: list[int] | None = None, *, output: list[int] | None = None, **sampling: object
) -> GenerationState:
    values = {"seed": 1, "max_tokens": 5, **sampling}
    return GenerationState(GenerationId(name), prompt or [1, 2, 3], Sampling(**values), list(output or []))


def tokens(events: Iterable[EngineEvent], name: str = "g") -> list[int]:
    return [e.token_id for e in events if isinstance(e, TokenEvent) and e.generation_id == name]

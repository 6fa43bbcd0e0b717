"""Which engine a worker runs, and the two parts in which it is brought up.

Invariant: torch is imported here and nowhere else in a worker, and only for an engine that needs it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol

from sllmd.engine.fake import FakeEngine, FakeSettings
from sllmd.engine.memory import MappedPartition
from sllmd.engine.messages import Attach
from sllmd.engine.protocol import Engine, EngineEvent
from sllmd.store.manifest import Manifest

EngineKind = Literal["transformers", "fake"]


class EngineBuilder(Protocol):
    """Brings up an engine in two parts, so that the first overlaps the bytes' way to memory."""

    def skeleton(self) -> None:
        """What can be done without bytes."""

    def progress(self, bytes_ready: Sequence[int]) -> None:
        """So many bytes of each partition are filled."""

    def use_threads(self, threads: int) -> None:
        """The engine will run on so many threads."""

    def finish(self) -> Engine:
        """The rest, with all bytes there."""


class _PacedFakeEngine(FakeEngine):
    def step(self) -> list[EngineEvent]:
        events = super().step()
        time.sleep(self.step_seconds)
        return events


class _FakeBuilder:
    """Does nothing, and takes as long as it is told."""

    def __init__(self, attach: Attach, manifest: Manifest) -> None:
        self._manifest = manifest
        self._options = attach.options
        self._settings = FakeSettings.model_validate_json(attach.fake_json)

    def skeleton(self) -> None:
        """Nothing to build."""

    def progress(self, bytes_ready: Sequence[int]) -> None:
        """Nothing to copy."""

    def use_threads(self, threads: int) -> None:
        """For ``stats`` only."""
        self._options = replace(self._options, threads=threads)

    def finish(self) -> Engine:
        """The engine, after its simulated seconds."""
        time.sleep(self._settings.overridden_by(self._manifest).build_seconds)
        return _PacedFakeEngine.build(self._manifest, self._options, self._settings)


def builder_of(
    kind: EngineKind, attach: Attach, manifest: Manifest, mapped: Sequence[MappedPartition]
) -> EngineBuilder:
    """For this checkpoint over this memory."""
    if kind == "fake" or manifest.architecture == "fake":
        return _FakeBuilder(attach, manifest)
    from sllmd.engine.bring_up import TransformersBuilder  # noqa: PLC0415

    return TransformersBuilder(manifest, attach.options, mapped, attach.devices)


def import_engine(kind: EngineKind) -> None:
    """In the zygote: everything slow that needs no model. Starts no thread."""
    if kind == "fake":
        return
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    from sllmd.engine import bring_up, warmup  # noqa: PLC0415

    assert bring_up
    warmup.warm_up()


def rehearse(kind: EngineKind) -> None:
    """In a worker that waits: see ``bring_up.rehearse``."""
    if kind == "transformers":
        from sllmd.engine import bring_up  # noqa: PLC0415

        bring_up.rehearse()


def give_back(kind: EngineKind) -> None:
    """In a worker that is to sleep: see ``bring_up.give_back``."""
    if kind == "transformers":
        from sllmd.engine import bring_up  # noqa: PLC0415

        bring_up.give_back()

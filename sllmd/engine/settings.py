"""Settings of the worker processes: the ``[workers]`` section."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ByteSize, Field, model_validator

from sllmd.core.frozen import Frozen
from sllmd.core.units import MIB, PositiveSeconds
from sllmd.engine.fake import FakeSettings


class WorkerSettings(Frozen):
    """How many workers wait, and how long anything may take before it counts as broken."""

    engine: Literal["transformers", "fake"] = "transformers"
    """``fake`` serves made-up tokens and imports no torch: for tests, demos and load generators."""
    in_process: bool = False
    """Run the fake engine inside the daemon, without any child process."""
    waiting_workers: int = Field(default=2, ge=1, le=64)
    """Workers forked ahead of need. Each makes one cold start free of process start-up; an idle one costs
    about 15 MB that it shares with nobody. More than the models that start at the same moment is waste."""
    refill_delay_seconds: PositiveSeconds = 1.0
    """From taking a waiting worker to forking the next, unless somebody waits for one: until then the cores
    belong to the first tokens of the model that took it. Also bounds how fast dying workers are replaced."""
    spawn_timeout_seconds: PositiveSeconds = 120.0
    """For the zygote to import torch and transformers (3 to 5 s on a quiet machine, a minute on a busy disk)
    and for a worker to be forked and warm."""
    attach_timeout_seconds: PositiveSeconds = 30.0
    """For a worker to map a model's memory: milliseconds normally."""
    begin_timeout_seconds: PositiveSeconds = 600.0
    """For the engine to be built once the bytes are there: fractions of a second, but seconds for each GB
    that has to be converted to another type or copied to a device."""
    hang_timeout_seconds: PositiveSeconds = 30.0
    """A worker that has work and completes no step for so long is killed. Longer than the slowest prefill
    chunk of the largest model; not counted while a model is built."""
    stop_timeout_seconds: PositiveSeconds = 1.0
    """From asking a worker to stop to killing it. It holds nothing that needs saving."""
    respawn_backoff_seconds_min: PositiveSeconds = 0.1
    """Before the first attempt to replace a zygote that died or failed to start."""
    respawn_backoff_seconds_max: PositiveSeconds = 30.0
    """The pause doubles with every failure in a row, up to this."""
    frame_bytes_max: ByteSize = Field(default=ByteSize(64 * MIB), ge=MIB)
    """Largest message to or from a worker. The largest honest one is a prompt's log probabilities: 128k
    positions with 20 alternatives are 40 MB."""
    output_lines_max: int = Field(default=200, ge=10)
    """Last lines of a worker's stdout and stderr that are kept to explain its end."""
    output_line_bytes_max: int = Field(default=4096, ge=256)
    """A longer line is cut: a worker's output must not fill the daemon's memory."""
    fake: FakeSettings = FakeSettings()
    """How the fake engine behaves."""

    @model_validator(mode="after")
    def _only_the_fake_runs_in_process(self) -> Self:
        if self.in_process and self.engine != "fake":
            raise ValueError("in_process needs engine = 'fake': a model runs in a process of its own")
        return self

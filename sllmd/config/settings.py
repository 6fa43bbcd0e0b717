"""All sections of the configuration; those of a room are defined in the room."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from sllmd.api.settings import ApiSettings
from sllmd.cluster.settings import ClusterSettings
from sllmd.core.frozen import Frozen
from sllmd.engine.protocol import EngineOptions
from sllmd.engine.settings import WorkerSettings
from sllmd.loader.settings import LoaderSettings
from sllmd.migration.settings import MigrationSettings
from sllmd.roles.settings import (
    DeviceSettings,
    MirrorSettings,
    ModelSettings,
    RoutingSettings,
    ServingSettings,
)
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.telemetry.settings import LogSettings


class NodeSettings(Frozen):
    """``[node]``: who this machine is and where it keeps things."""

    name: str = Field(default="localhost", min_length=1)
    """What other nodes and people call it; the host's name unless set."""
    data_dir: Path = Path("/var/lib/sllmd")
    """Holds ``store/`` and the node's state. /var/lib/sllmd for root, ~/.local/share/sllmd for others and
    with ``--dev``."""
    zone: str = ""
    """What fails together: a rack, a power feed. The label ``rack`` unless ``labels`` has one: voters and
    replicas are spread over its values."""
    labels: dict[str, str] = Field(default_factory=dict)
    """What models may ask of a node that shall run them."""

    @property
    def store_directory(self) -> Path:
        """Where checkpoints are kept."""
        return self.data_dir / "store"

    @property
    def all_labels(self) -> dict[str, str]:
        """``labels`` with ``zone`` among them."""
        return ({"rack": self.zone} if self.zone else {}) | self.labels


class EngineSettings(Frozen):
    """``[engine]``: how every model is run; ``[models."name"]`` may differ."""

    threads: int = Field(default=0, ge=0)
    """Threads of one forward pass; 0: the physical cores that this process may use, shared evenly by the
    replicas on the CPU that have work; from eight cores on one is left to the daemon."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """``auto`` keeps what the checkpoint has."""
    batch_max: int = Field(default=32, ge=1, le=4096)
    """Rows that decode together; more wait. Each costs its share of the key-value cache."""
    cache_tokens: int = Field(default=0, ge=0)
    """Tokens that a replica's key-value cache holds over all rows; 0: batch_max times the context, as far
    as memory allows."""
    context_tokens_max: int = Field(default=0, ge=0)
    """Longest prompt and completion together; 0: what the model was made for."""
    prefill_chunk_tokens: int = Field(default=256, ge=16)
    """Prompt tokens per step. More makes long prompts faster and other people's streams wait longer."""
    fast_path: bool = True
    """Use the fused forward pass where its results equal the plain one's; false: never."""

    def options(self, model: ModelSettings | None = None) -> EngineOptions:
        """What an engine is told, with the values that ``model`` sets itself."""
        values = self.model_dump()
        if model is not None:
            values |= model.model_dump(include=set(values), exclude_none=True)
        return EngineOptions(**values)


class Config(Frozen):
    """Everything that can be set. Built by ``sllmd.config.loading.load_config``."""

    node: NodeSettings = NodeSettings()
    cluster: ClusterSettings = ClusterSettings()
    api: ApiSettings = ApiSettings()
    devices: DeviceSettings = DeviceSettings()
    serving: ServingSettings = ServingSettings()
    routing: RoutingSettings = RoutingSettings()
    migration: MigrationSettings = MigrationSettings()
    mirror: MirrorSettings = MirrorSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    loader: LoaderSettings = LoaderSettings()
    workers: WorkerSettings = WorkerSettings()
    engine: EngineSettings = EngineSettings()
    log: LogSettings = LogSettings()
    models: dict[str, ModelSettings] = Field(default_factory=dict)
    """One section per model that needs other settings than the rest."""

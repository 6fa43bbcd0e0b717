"""What no single key can tell: settings that are fine alone and wrong together."""

from __future__ import annotations

from collections.abc import Sequence

from sllmd.api.settings import PORT_MAX
from sllmd.config.settings import Config
from sllmd.core.errors import ConfigError
from sllmd.core.units import format_bytes
from sllmd.loader.settings import LoaderSettings
from sllmd.telemetry.memory import total_memory_bytes


def check(config: Config) -> None:
    """Raise ConfigError for the first contradiction."""
    _check_names(config)
    _check_budget(config.loader)
    _check_addresses(config.api.listen)


def _check_addresses(listen: Sequence[str]) -> None:
    for address in listen:
        _host, _, port = address.rpartition(":")
        if ":" not in address or not port.isdecimal() or int(port) > PORT_MAX:
            raise ConfigError(
                f"`api.listen`: `{address}` is not HOST:PORT", hint='for example "127.0.0.1:8343"'
            )


def _check_budget(loader: LoaderSettings) -> None:
    budget_bytes = loader.budget_bytes(total_memory_bytes())
    if budget_bytes < loader.slab_bytes:
        raise ConfigError(
            f"`loader.slab_bytes` is {format_bytes(loader.slab_bytes)}, `loader.dram_budget` only "
            f"{format_bytes(budget_bytes)} on this machine: no model could be loaded",
            hint="raise the budget or make slabs smaller",
        )


def _check_names(config: Config) -> None:
    owners: dict[str, str] = {}
    for name, model in config.models.items():
        for alias in model.aliases:
            other = owners.setdefault(alias, name)
            if other == name and alias not in config.models:
                continue
            taken = f"also an alias of `{other}`" if other != name else "a model's name"
            raise ConfigError(
                f"`{alias}`, an alias of `{name}`, is {taken}",
                hint=f'take it out of aliases in [models."{name}"]',
            )

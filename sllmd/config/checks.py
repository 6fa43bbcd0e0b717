"""What no single key can tell: settings that are fine alone and wrong together."""

from __future__ import annotations

from sllmd.config.settings import Config
from sllmd.core.errors import ConfigError


def check(config: Config) -> None:
    """Raise ConfigError for the first contradiction."""
    _check_names(config)


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

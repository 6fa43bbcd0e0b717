"""What no single key can tell: settings that are fine alone and wrong together."""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path

from sllmd.api.settings import ApiSettings
from sllmd.config.settings import Config
from sllmd.core.errors import ConfigError


def check(config: Config) -> None:
    """Raise ConfigError for the first contradiction."""
    _check_names(config)


def check_exposure(api: ApiSettings) -> None:
    """Refuse to serve other machines without keys, unless ``require_key = false`` says it is meant so.

    Apart from ``check``, since only a daemon that starts can be exposed. Raises ConfigError.
    """
    exposed = [address for address in api.listen if not is_loopback(address)]
    if exposed and api.require_key is not False and not _has_keys(api.keys_file):
        raise ConfigError(
            f"`[api] listen` has {exposed[0]}, which other machines can reach, and no API key exists",
            hint=f"put a key into {api.keys_file}, or listen on 127.0.0.1",
        )


def is_loopback(address: str) -> bool:
    """Whether ``host:port`` can only be reached from this machine."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _has_keys(keys_file: Path) -> bool:
    try:
        return bool(tomllib.loads(keys_file.read_text(encoding="utf-8")))
    except OSError:
        return False
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{keys_file}: not valid TOML: {error}") from None


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

"""Who can reach this API, and whether it then needs keys."""

from __future__ import annotations

from sllmd.api.keys import KeyRing, is_loopback
from sllmd.api.settings import ApiSettings
from sllmd.core.errors import ConfigError


def exposed_addresses(settings: ApiSettings) -> list[str]:
    """The addresses that other machines can reach."""
    return [address for address in settings.listen if not is_loopback(address)]


def key_needed(settings: ApiSettings) -> bool:
    """``auto``: as soon as any address is not loopback, on all of them: proxies come in through loopback."""
    if settings.require_key == "auto":
        return bool(exposed_addresses(settings))
    return settings.require_key


def check_exposure(settings: ApiSettings) -> None:
    """Refuse to serve other machines without keys, unless ``require_key = false`` says it is meant so.

    Not a rule of the configuration: only a daemon that starts can be exposed. Raises ConfigError.
    """
    exposed = exposed_addresses(settings)
    if exposed and key_needed(settings) and not len(KeyRing(settings.keys_file)):
        raise ConfigError(
            f"`[api] listen` has {exposed[0]}, which other machines can reach, and no API key exists",
            hint=f"put a key into {settings.keys_file}, or listen on 127.0.0.1",
        )

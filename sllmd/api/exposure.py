"""Who can reach this API, and whether it then needs keys."""

from __future__ import annotations

from sllmd.api.keys import KeyRing, is_loopback
from sllmd.api.settings import ApiSettings
from sllmd.core.errors import ConfigError


def exposed_addresses(settings: ApiSettings) -> list[str]:
    """The addresses that other machines can reach."""
    return [address for address in settings.listen if not is_loopback(address)]


def key_needed(settings: ApiSettings, keys: KeyRing) -> bool:
    """``auto``: as soon as there is a key, or any address is not loopback; then on every address.

    Loopback is no exception: other people on this machine, and proxies, come in through it. The Unix socket
    is one, because its file says who may open it. Whether keys exist may not be known yet: then they might.
    A file of keys that vanished or was emptied opens nothing, see `keys`.
    """
    if settings.require_key == "auto":
        return bool(exposed_addresses(settings)) or keys.wanted
    return settings.require_key


def check_exposure(settings: ApiSettings) -> None:
    """Refuse to serve other machines without keys and without a way to make one.

    The cluster's keys are known only once a daemon runs; until there is one, nobody gets in by TCP, and the
    Unix socket is where ``sllmd keys create`` makes the first. ``require_key = false`` says that none is
    needed. Not a rule of the configuration: only a daemon that starts can be exposed. Raises ConfigError.
    """
    exposed = exposed_addresses(settings)
    keyless = settings.uds is None and not len(KeyRing(settings.keys_file))
    if exposed and settings.require_key is not False and keyless:
        raise ConfigError(
            f"`[api] listen` has {exposed[0]}, which other machines can reach, and no API key exists",
            hint=f"put a key into {settings.keys_file}, or set [api] uds for `sllmd keys create`",
        )

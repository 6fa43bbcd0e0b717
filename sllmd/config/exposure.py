"""Whether a daemon would serve other machines without asking who they are."""

from __future__ import annotations

from sllmd.api.keys import KeyRing, is_loopback
from sllmd.api.settings import ApiSettings
from sllmd.core.errors import ConfigError


def check_exposure(api: ApiSettings) -> None:
    """Refuse to serve other machines without keys, unless ``require_key = false`` says it is meant so.

    Apart from ``checks``, since only a daemon that starts can be exposed. Raises ConfigError.
    """
    exposed = [address for address in api.listen if not is_loopback(address)]
    if exposed and api.require_key is not False and not len(KeyRing(api.keys_file)):
        raise ConfigError(
            f"`[api] listen` has {exposed[0]}, which other machines can reach, and no API key exists",
            hint=f"put a key into {api.keys_file}, or listen on 127.0.0.1",
        )

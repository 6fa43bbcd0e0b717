"""Which of this machine's addresses others see."""

from __future__ import annotations

import ipaddress
import socket

from sllmd.core.errors import ConfigError

_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Reserved for documentation: the route there is the default route, and nothing is ever sent."""


def advertised_host(bind_host: str, advertise_host: str | None) -> str:
    """The address to tell others: as configured, else the one bound, else the one on the default route.

    Raises ConfigError when there is none, or when what is configured is no address of one machine.
    """
    chosen = advertise_host or bind_host
    try:
        address = ipaddress.ip_address(chosen)
    except ValueError as error:
        raise ConfigError(f"`{chosen}` is not an IP address", hint="other nodes need a number") from error
    if not address.is_unspecified:
        return chosen
    if advertise_host:
        raise ConfigError(f"{chosen} cannot be advertised: it means every address of a machine")
    return _on_default_route(socket.AF_INET6 if address.version == 6 else socket.AF_INET)


def _on_default_route(family: socket.AddressFamily) -> str:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((_ELSEWHERE[family], 9))
        except OSError as error:
            raise ConfigError(
                f"cannot tell which address of this machine others reach: {error}",
                hint="say which one to advertise",
            ) from error
        host: str = probe.getsockname()[0]
        return host

"""Addresses as text: ``10.0.0.1:8345``, ``[fe80::1]:8345``. Pure."""

from __future__ import annotations

import ipaddress

from sllmd.core.errors import ConfigError


def format_address(host: str, port: int) -> str:
    """A host and a port in one piece."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str, *, default_port: int | None = None) -> tuple[str, int]:
    """Host and port; ConfigError unless both are there, or the port may be absent."""
    if default_port is not None and _is_bare_host(address):
        return address.strip("[]"), default_port
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536 or _is_open(host):
        raise ConfigError(f"`{address}` is not an address", hint='write "host:port" or "[ipv6]:port"')
    return host.strip("[]"), int(port)


def is_numeric(host: str) -> bool:
    """Whether it is an IP address, which nobody needs to look up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a host is reached from this machine only."""
    return host == "localhost" or (is_numeric(host) and ipaddress.ip_address(host).is_loopback)


def _is_bare_host(address: str) -> bool:
    if address.startswith("["):
        return address.endswith("]")
    return ":" not in address or address.count(":") > 1


def _is_open(host: str) -> bool:
    """An IPv6 address needs its brackets, or nobody knows where the port begins."""
    return ":" in host and not (host.startswith("[") and host.endswith("]"))

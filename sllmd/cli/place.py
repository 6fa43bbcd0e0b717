"""Which daemon a command speaks to when ``--addr`` names none: the one of the configuration."""

from __future__ import annotations

from pathlib import Path

from sllmd.cli.client import Address, parse_address
from sllmd.config.loading import Loaded
from sllmd.config.paths import socket_file

SYSTEM_SOCKET = Path("/run/sllmd/sllmd.sock")
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - to speak to, not to bind


def configured_address(loaded: Loaded) -> Address:
    """Where a daemon with this configuration is to be found.

    1. The Unix socket that somebody configured.
    2. The usual socket of this user, if there is one; or, unless another port was configured, the system's.
    3. The first address that it listens on.
    """
    api = loaded.config.api
    uds = api.uds or socket_file()
    if loaded.is_set(("api", "uds")) or not api.listen or _is_socket(uds):
        return Address(socket_path=str(uds))
    if not loaded.is_set(("api", "listen")) and _is_socket(SYSTEM_SOCKET):
        return Address(socket_path=str(SYSTEM_SOCKET))
    host, _, port = api.listen[0].rpartition(":")
    return parse_address(f"{_ANY_HOST.get(host, host)}:{port}")


def _is_socket(path: Path) -> bool:
    try:
        return path.is_socket()
    except PermissionError:  # in a directory that is not for us
        return False

"""Which daemon a command speaks to when ``--addr`` names none: the one of the configuration."""

from __future__ import annotations

import socket
from pathlib import Path

from sllmd.cli.client import Address, parse_address
from sllmd.config.loading import Loaded
from sllmd.config.paths import socket_file

SYSTEM_SOCKET = Path("/run/sllmd/sllmd.sock")
_LISTENS_SECONDS = 1.0
"""A node takes connections at once, unless its backlog is full."""
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - to speak to, not to bind


def configured_address(loaded: Loaded) -> Address:
    """Where a daemon with this configuration is to be found.

    1. The Unix socket that somebody configured.
    2. The usual socket of this user, if there is one.
    3. Unless another port was configured: the system's, or that of the only node that runs on this machine.
    4. The first address that it listens on.
    """
    api = loaded.config.api
    uds = api.uds or socket_file()
    if loaded.is_set(("api", "uds")) or not api.listen or _is_socket(uds):
        return Address(socket_path=str(uds))
    if not loaded.is_set(("api", "listen")):
        found = [SYSTEM_SOCKET] if _is_socket(SYSTEM_SOCKET) else local_sockets()
        if len(found) == 1:
            return Address(socket_path=str(found[0]))
    host, _, port = api.listen[0].rpartition(":")
    return parse_address(f"{_ANY_HOST.get(host, host)}:{port}")


def local_sockets() -> list[Path]:
    """The sockets of the nodes that run on this machine, where nobody put them elsewhere, and let us in."""
    directories = dict.fromkeys((socket_file().parent, SYSTEM_SOCKET.parent))
    return [path for each in directories for path in sorted(each.glob("*.sock")) if _listens(path)]


def _listens(path: Path) -> bool:
    """Whether somebody does: a file that a crash left is no node."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(_LISTENS_SECONDS)
        try:
            asking.connect(str(path))
        except OSError:
            return False
    return True


def _is_socket(path: Path) -> bool:
    try:
        return path.is_socket()
    except PermissionError:  # in a directory that is not for us
        return False

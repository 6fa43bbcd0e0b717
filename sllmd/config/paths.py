"""Where things lie when nobody says: systemd's directories, the system's for root, XDG's for others."""

from __future__ import annotations

import os
from pathlib import Path

SYSTEM_CONFIG_FILE = Path("/etc/sllmd/sllmd.toml")
SYSTEM_RUNTIME_DIRECTORY = Path("/run/sllmd")
SYSTEM_DATA_DIRECTORY = Path("/var/lib/sllmd")


def data_directory(*, dev: bool = False) -> Path:
    """The store and what else must survive a restart; with ``dev`` a person's own, whoever it is."""
    private = _private("XDG_DATA_HOME", ".local/share")
    return _given("STATE_DIRECTORY", private if dev else SYSTEM_DATA_DIRECTORY, private)


def configuration_directory() -> Path:
    """Where keys and ``sllmd.toml`` are looked for."""
    private = _private("XDG_CONFIG_HOME", ".config")
    return _given("CONFIGURATION_DIRECTORY", SYSTEM_CONFIG_FILE.parent, private)


def socket_file() -> Path:
    """The Unix socket that the daemon listens on and the command line speaks to."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    private = Path(runtime) / "sllmd" if runtime else data_directory() / "run"
    return _given("RUNTIME_DIRECTORY", SYSTEM_RUNTIME_DIRECTORY, private) / "sllmd.sock"


def default_config_file() -> Path | None:
    """The configuration that is read when none is named: one's own, else the system's, else none."""
    for candidate in (configuration_directory() / "sllmd.toml", SYSTEM_CONFIG_FILE):
        if candidate.is_file():
            return candidate
    return None


def _private(xdg_name: str, under_home: str) -> Path:
    home = os.environ.get(xdg_name)
    return (Path(home) if home else Path.home() / under_home) / "sllmd"


def _given(systemd_name: str, system: Path, private: Path) -> Path:
    given = os.environ.get(systemd_name)
    if given:
        return Path(given.split(":")[0])
    return system if os.geteuid() == 0 else private

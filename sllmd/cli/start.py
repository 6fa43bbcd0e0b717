"""``sllmd start``: from flags to a running daemon."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sllmd.api.exposure import check_exposure
from sllmd.cli.exits import INTERRUPTED
from sllmd.cli.session import Session, command
from sllmd.config.layers import KeyPath
from sllmd.config.loading import Loaded, load_config
from sllmd.config.paths import data_directory, socket_file
from sllmd.core.errors import ConfigError, InvalidRequest, SllmdError
from sllmd.daemon import run

app = typer.Typer()


@command(app, "start")
def start(
    session: Session,
    config: Annotated[
        Path | None, typer.Option(help="Configuration file; SLLMD_CONFIG does the same.")
    ] = None,
    dev: Annotated[
        bool, typer.Option("--dev", help="A laptop: loopback, CPU, 1 GiB, the model `tiny`.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="This node's name.")] = None,
    listen: Annotated[list[str] | None, typer.Option(help="HOST:PORT of the API; may be repeated.")] = None,
    uds: Annotated[Path | None, typer.Option(help="Unix socket of the API.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the store and this node's state are.")] = None,
    join: Annotated[
        list[str] | None, typer.Option(help="HOST[:PORT] of a member to join through; may be repeated.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="SLLMD_TOKEN", help="Join token, from `sllmd token create`.")
    ] = None,
    bootstrap_expect: Annotated[
        int | None,
        typer.Option(help="Found the cluster together with so many new nodes, all in --join."),
    ] = None,
    cluster_listen: Annotated[
        str | None, typer.Option(help="IP[:PORT] for other nodes; 0.0.0.0 opens this node to other machines.")
    ] = None,
    advertise: Annotated[str | None, typer.Option(help="IP to tell other nodes.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set any key.")
    ] = None,
) -> None:
    """Run the daemon in the foreground."""
    flags = flag_values(
        {
            "--name": name,
            "--listen": listen,
            "--uds": uds,
            "--data-dir": data_dir,
            "--join": join,
            "--bootstrap-expect": bootstrap_expect,
            "--cluster-listen": cluster_listen,
            "--advertise": advertise,
        },
        assignments,
    )
    loaded = _load(config, flags, dev=dev)
    if dev:
        flags += _place_of_its_own(loaded, name)
        loaded = load_config(config, flags=flags, dev=dev)
    check_exposure(loaded.config.api)
    _allow_many_descriptors()
    try:
        cut_short = run(loaded.config, dev=dev, token=token)
    except OSError as error:
        raise startup_error(error) from error
    session.note("stopped at once" if cut_short else "stopped")
    if cut_short:
        raise typer.Exit(INTERRUPTED)


def _load(config: Path | None, flags: list[tuple[KeyPath, Any, str]], *, dev: bool) -> Loaded:
    """The configuration. Raises ConfigError; InvalidRequest when it is good but for the flags."""
    try:
        return load_config(config, flags=flags, dev=dev)
    except ConfigError as error:
        wrong = error
    try:
        load_config(config, dev=dev)
    except ConfigError:
        raise wrong from None
    raise InvalidRequest(wrong.message, hint=wrong.hint)


def _allow_many_descriptors() -> None:
    """Clients and slabs are descriptors; the usual soft limit of 1024 is there for select(2), not for us."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _place_of_its_own(loaded: Loaded, name: str | None) -> list[tuple[KeyPath, Any, str]]:
    """What a node on a laptop that has others like it needs besides its name; what somebody set stays."""
    flags: list[tuple[KeyPath, Any, str]] = []
    if loaded.origin(("api", "listen")) == "--dev":
        flags.append((("api", "next_free_port"), True, "--dev"))
    if name is not None and not loaded.is_set(("node", "data_dir")):
        flags.append((("node", "data_dir"), data_directory(dev=True) / "dev" / name, "--dev --name"))
    if name is not None and not loaded.is_set(("api", "uds")):
        flags.append((("api", "uds"), socket_file().with_name(f"{name}.sock"), "--dev --name"))
    return flags


_KEYS: dict[str, KeyPath] = {
    "--name": ("node", "name"),
    "--listen": ("api", "listen"),
    "--uds": ("api", "uds"),
    "--data-dir": ("node", "data_dir"),
    "--join": ("cluster", "join"),
    "--bootstrap-expect": ("cluster", "bootstrap_expect"),
    "--cluster-listen": ("cluster", "listen"),
    "--advertise": ("cluster", "advertise"),
}


def flag_values(given: Mapping[str, Any], assignments: list[str] | None) -> list[tuple[KeyPath, Any, str]]:
    """The flags as configuration keys. Raises InvalidRequest for a malformed ``--set``."""
    flags = [(_KEYS[flag], value, flag) for flag, value in given.items() if value not in (None, [])]
    for assignment in assignments or []:
        key, equals, value = assignment.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or len(path) < 2:
            raise InvalidRequest(f"--set {assignment}: not SECTION.KEY=VALUE")
        flags.append((path, value, f"--set {key}"))
    return flags


def startup_error(error: OSError) -> SllmdError:
    """What kept the daemon from starting, with what to do about it."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return SllmdError(
            f"not allowed: {error.filename or error.strerror or error}",
            hint="run as root, or choose another place with --data-dir and --uds",
        )
    return SllmdError(str(error) or os.strerror(error.errno or 0))

"""``sllmd start``: from flags to a running daemon."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Annotated, Any

import typer

from sllmd.api.exposure import check_exposure
from sllmd.cli.session import EXIT_INTERRUPTED, Session, command
from sllmd.config.layers import KeyPath
from sllmd.config.loading import load_config
from sllmd.core.errors import InvalidRequest, SllmdError
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
    data_dir: Annotated[Path | None, typer.Option(help="Where the store is.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set any key.")
    ] = None,
) -> None:
    """Run the daemon in the foreground."""
    flags = flag_values(name=name, listen=listen, uds=uds, data_dir=data_dir, assignments=assignments)
    loaded = load_config(config, flags=flags, dev=dev)
    check_exposure(loaded.config.api)
    _allow_many_descriptors()
    try:
        cut_short = run(loaded.config)
    except OSError as error:
        raise startup_error(error) from error
    session.note("stopped at once" if cut_short else "stopped")
    if cut_short:
        raise typer.Exit(EXIT_INTERRUPTED)


def _allow_many_descriptors() -> None:
    """Clients and slabs are descriptors; the usual soft limit of 1024 is there for select(2), not for us."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def flag_values(
    *,
    name: str | None,
    listen: list[str] | None,
    uds: Path | None,
    data_dir: Path | None,
    assignments: list[str] | None,
) -> list[tuple[KeyPath, Any, str]]:
    """The flags as configuration keys. Raises InvalidRequest for a malformed ``--set``."""
    known: list[tuple[KeyPath, Any, str]] = [
        (("node", "name"), name, "--name"),
        (("api", "listen"), listen or None, "--listen"),
        (("api", "uds"), uds, "--uds"),
        (("node", "data_dir"), data_dir, "--data-dir"),
    ]
    flags = [flag for flag in known if flag[1] is not None]
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

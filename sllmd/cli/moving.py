"""Commands that move running generations between nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from sllmd.cli.client import segment
from sllmd.cli.session import Session, command
from sllmd.cli.tables import Column
from sllmd.core.errors import ModelNotFound
from sllmd.core.units import format_seconds

app = typer.Typer()

REQUEST_NOT_FOUND = "request_not_found"


def _pause(row: Mapping[str, Any]) -> str:
    pause_ms = row["move"]["pause_ms"]
    return "-" if pause_ms is None else format_seconds(pause_ms / 1000)


_COLUMNS = (
    Column("REQUEST", lambda row: row["request_id"]),
    Column("MODEL", lambda row: row["model"]),
    Column("RESULT", lambda row: row["move"]["result"].replace("_", " ")),
    Column("PAUSE", _pause, right=True),
    Column("ROUNDS", lambda row: str(row["move"]["rounds"]), right=True),
    Column("TOKENS", lambda row: str(row["move"]["tokens"]), right=True),
    Column("TOOK", lambda row: format_seconds(row["move"]["seconds"]), right=True),
    Column("NOTE", lambda row: row["move"]["outcome"] or ""),
)


@command(app, "migrate")
def migrate(
    session: Session,
    what: Annotated[str, typer.Argument(metavar="REQUEST|MODEL", help="A running request's id, or a model.")],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="NODE", help="A node's name or id. (default: the best other node)"),
    ] = None,
) -> None:
    """Move a running request, or all of a model, to another node; clients notice no more than a blink."""
    order = {} if to is None else {"to": to}
    moved = _order(session, what, order)["generations"]
    session.show_rows(moved, _COLUMNS, empty=f"nothing of {what} is running")


def _order(session: Session, what: str, order: Mapping[str, str]) -> Any:
    """Whatever ``what`` is: a request first. Raises what the model's answer raises."""
    try:
        return session.client.post(f"/sllmd/v1/requests/{segment(what)}/migrate", order)
    except ModelNotFound as error:
        if error.code != REQUEST_NOT_FOUND:
            raise
    return session.client.post(f"/sllmd/v1/models/{segment(what)}/migrate", order)

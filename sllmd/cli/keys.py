"""Commands about the cluster's API keys. A key's secret is shown once, when it is made."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from sllmd.cli.client import segment
from sllmd.cli.session import Session, command
from sllmd.cli.tables import Column

app = typer.Typer()
keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")


class Scope(StrEnum):
    """What a key opens."""

    INFERENCE = "inference"
    ADMIN = "admin"


_COLUMNS = (
    Column("KEY", lambda row: row["id"]),
    Column("SCOPES", lambda row: ", ".join(row["scopes"]) or "-"),
    Column("FROM", lambda row: "this node's file" if row["source"] == "file" else "the cluster"),
)


@command(keys_app, "create")
def create(
    session: Session,
    key: Annotated[
        str | None, typer.Argument(metavar="ID", help="Its name in logs and lists. (default: made up)")
    ] = None,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(
            help="What it opens: models, or all of /sllmd/v1; may be repeated. (default: inference)"
        ),
    ] = None,
) -> None:
    """Make an API key that every node accepts, and print its secret: the only time that it is seen."""
    order = {"scopes": [one.value for one in scope or [Scope.INFERENCE]]}
    made = session.client.post("/sllmd/v1/keys", order if key is None else {"id": key, **order})
    session.show_object(made, made["secret"])
    if session.for_people:
        session.note(
            f"key {made['id']}, for {' and '.join(made['scopes'])}; it is not shown again."
            f" `sllmd keys revoke {made['id']}` ends it"
        )


@command(keys_app, "list")
def list_(session: Session) -> None:
    """List the API keys that the node which is asked accepts; never their secrets."""
    found = session.client.get("/sllmd/v1/keys")["keys"]
    session.show_rows(found, _COLUMNS, empty="no keys yet: sllmd keys create")


@command(keys_app, "revoke")
def revoke(
    session: Session, key: Annotated[str, typer.Argument(metavar="ID", help="As `sllmd keys list` has it.")]
) -> None:
    """End an API key of the cluster: from now on it opens nothing."""
    revoked = session.client.delete(f"/sllmd/v1/keys/{segment(key)}")
    session.show_object(revoked, f"key {revoked['id']} is revoked")

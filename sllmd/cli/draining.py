"""Commands that empty a node, and let it work again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from sllmd.cli.client import segment
from sllmd.cli.session import AnyNodeArgument, Session, command, duration_option
from sllmd.core.errors import BusyError

app = typer.Typer()


@command(app, "drain")
def drain(
    session: Session,
    node: AnyNodeArgument = None,
    deadline: Annotated[
        str, typer.Option(metavar="DURATION", help="How long what runs may take to move, or to finish.")
    ] = "5m",
    migrate: Annotated[
        bool, typer.Option("--migrate/--no-migrate", help="Move what runs, or let it finish there.")
    ] = True,
) -> None:
    """Empty a node: no new work, what runs moves to others without its clients noticing.

    It stays so, over restarts too, until `sllmd undrain`. Nothing is cut short: what has not moved when the
    deadline comes goes on, and the command fails.
    """
    order = {"deadline_seconds": duration_option("--deadline", deadline), "migrate": migrate}
    name = node or session.asked_node
    step: Mapping[str, Any] = {}
    for step in session.client.stream(f"/sllmd/v1/nodes/{segment(name)}/drain", order):
        if session.for_people and step["status"] == "draining":
            session.note(_line(step))
    if step["status"] == "timeout":
        raise BusyError(
            f"{name}: {step['left']} still run there; it takes no new work",
            retry_after_seconds=1,
            hint="`sllmd drain` again waits longer; `sllmd undrain` calls it off",
        )
    session.show_object(
        dict(step),
        f"{name} drained in {step['seconds']:.1f} s, {step['moved']} moved. Undo: sllmd undrain {name}",
    )


def _line(step: Mapping[str, Any]) -> str:
    if not step["request_id"]:
        return f"{step['node']}: no new work \u00b7 {step['left']} running"
    what = f"{step['request_id']} ({step['model']})"
    if step["result"] == "done":
        pause = "" if step["pause_ms"] is None else f", pause {step['pause_ms']:.0f} ms"
        return f"{what} \u2192 {step['target']}{pause} \u00b7 {step['left']} left"
    return f"{what}: {step['result']}, {step['reason']} \u00b7 {step['left']} left"


@command(app, "undrain")
def undrain(session: Session, node: AnyNodeArgument = None) -> None:
    """Let a drained node take work again."""
    name = node or session.asked_node
    answer = session.client.post(f"/sllmd/v1/nodes/{segment(name)}/undrain", {})
    session.show_object(answer, f"{answer['node']} takes work again")

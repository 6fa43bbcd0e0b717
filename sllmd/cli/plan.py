"""``sllmd plan``: where a model would start soonest, and why not elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from sllmd.cli.client import segment
from sllmd.cli.session import ModelArgument, Session, command
from sllmd.cli.tables import Column
from sllmd.core.units import format_seconds

app = typer.Typer()

_NOT_POSSIBLE = "not possible"
_PEER = "peer "


@command(app, "plan")
def plan(session: Session, model: ModelArgument) -> None:
    """Show where a model would start soonest, and why not elsewhere. Nothing is done."""
    found = session.client.get(f"/sllmd/v1/models/{segment(model)}/plan")
    session.show_object(found, plan_text(session, found["plan"], found["names"]))


def plan_text(session: Session, plan: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The picture of one PlanStatus."""
    rows = [plan_row(rank, way, names) for rank, way in enumerate(plan["ways"], 1)]
    lines = [session.table(rows, _COLUMNS).rstrip()] if rows else []
    if not plan["node"]:
        lines.append(f"nowhere: {plan['reason'] or 'nobody can tell when there will be room'}")
    elif plan["reason"]:
        lines.append(f"it waits: {plan['reason']}")
    return "\n".join(lines)


def plan_row(rank: int, way: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """QUEUE, FREE, LOAD and START add up to TOTAL: a queue and devices that become free are waited for at the
    same time, and of the latter only what is longer is shown. START: a process takes the weights over."""
    possible = way["way"] != _NOT_POSSIBLE and way["total_seconds"] is not None
    queue, free, load = way["queue_seconds"], way["free_seconds"], way["load_seconds"]
    return {
        "rank": str(rank) if possible else "-",
        "node": names.get(way["node"], way["node"]),
        "from": source_name(way["source"], names) or "-",
        "queue": format_seconds(queue) if possible else "-",
        "free": format_seconds(max(0.0, free - queue)) if possible else "-",
        "load": format_seconds(load) if possible else "-",
        "start": format_seconds(max(0.0, way["total_seconds"] - max(queue, free) - load))
        if possible
        else "-",
        "total": format_seconds(way["total_seconds"]) if possible else "-",
        "note": f"{way['way']}: {way['why']}",
    }


def source_name(source: str, names: Mapping[str, str]) -> str:
    """A tier; of a peer, with the node's name."""
    if not source.startswith(_PEER):
        return source
    node = source.removeprefix(_PEER)
    return f"{_PEER}{names.get(node, node)}"


_COLUMNS = (
    Column("RANK", lambda row: row["rank"], right=True),
    Column("NODE", lambda row: row["node"]),
    Column("FROM", lambda row: row["from"]),
    Column("QUEUE", lambda row: row["queue"], right=True),
    Column("FREE", lambda row: row["free"], right=True),
    Column("LOAD", lambda row: row["load"], right=True),
    Column("START", lambda row: row["start"], right=True),
    Column("TOTAL", lambda row: row["total"], right=True),
    Column("NOTE", lambda row: row["note"], note=True),
)

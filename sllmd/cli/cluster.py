"""Commands about the nodes of a cluster, asked of any of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from sllmd.cli.client import segment
from sllmd.cli.session import NodeArgument, Session, command, duration_option
from sllmd.cli.tables import Column
from sllmd.core.errors import SllmdError
from sllmd.core.units import format_age

app = typer.Typer()
node_app = typer.Typer(help="List nodes, or remove one that is dead.", no_args_is_help=True)
app.add_typer(node_app, name="node")

GONE_SECONDS = 60.0
"""How long a daemon that left may take to end."""
_ASK_SECONDS = 0.1


def _since(row: Mapping[str, Any]) -> str:
    since = row["drained_since"] if member_state(row) == "drained" else row["since"]
    return "-" if since is None else format_age(max(0.0, time.time() - since))


def _role(row: Mapping[str, Any]) -> str:
    if row["state"] == "left":
        return "-"
    return f"{row['role']}, leads" if row["leader"] else str(row["role"])


def is_member(row: Mapping[str, Any]) -> bool:
    """Whether it is still one: who left for good is only remembered, for an hour."""
    return row["state"] != "left" or bool(row["admitted"])


def member_state(row: Mapping[str, Any]) -> str:
    """Its state as people call it: a member that said goodbye was only stopped."""
    if row["state"] == "left" and row["admitted"]:
        return "stopped"
    if row["state"] != "alive":
        return str(row["state"])
    return "drained" if row["drained_since"] else "draining" if row["draining"] else "alive"


def member_note(row: Mapping[str, Any]) -> str:
    """What else there is to say of a member."""
    notes = []
    if row["suspected_by"]:
        notes.append(f"no answer to {', '.join(row['suspected_by'])}")
    if row["name_conflict"]:
        notes.append("another node has this name")
    state = member_state(row)
    if state == "drained":
        notes.append("nothing runs there")
    if row["cordoned"] and state != "left":
        notes.append(f"no new work until `sllmd undrain {row['name']}`")
    if state == "stopped":
        notes.append("a member still: comes back when it is started")
    if state == "dead" and row["since"] is None:
        notes.append("not heard of for an hour, or since this daemon was started")
    return "; ".join(notes)


_MEMBER_COLUMNS = (
    Column("NODE", lambda row: f"{row['name']}{' *' if row['is_me'] else ''}"),
    Column("ADDRESS", lambda row: row["address"] or "-"),
    Column("STATUS", member_state),
    Column("FOR", _since, right=True),
    Column("ROLE", _role),
    Column("REPLICAS", lambda row: str(row["replicas"]), right=True),
    Column("REQS", lambda row: str(row["running"]), right=True),
    Column("VERSION", lambda row: row["version"] or "-"),
    Column("DEVICES", lambda row: ", ".join(row["devices"]) or "-", wide=True),
    Column("GOSSIP", lambda row: row["gossip_address"] or "-", wide=True),
    Column("ID", lambda row: row["id"], wide=True),
    Column("NOTE", member_note, note=True),
)


@command(app, "members")
def members(
    session: Session,
    show_all: Annotated[
        bool, typer.Option("--all", "-a", help="Also nodes that left for good within the last hour.")
    ] = False,
) -> None:
    """Show the nodes of the cluster as the one that is asked (*) sees them: who lives, who leads.

    alive, suspect (probes are not answered), dead; draining, drained: alive, without new work; stopped: its
    daemon ended well, and it is a member still; left: no member any more. FOR tells since when.
    """
    cluster = session.client.get("/sllmd/v1/members")
    rows = [row for row in cluster["members"] if show_all or is_member(row)]
    session.show_rows(rows, _MEMBER_COLUMNS, empty="no nodes")
    if not session.for_people:
        return
    if dead := cluster["control"]["majority_dead"]:
        session.note(majority_lost_text(dead))
    elif cluster["leader"] is None:
        session.note("nobody leads just now: changes wait, what is loaded is still served")


def majority_lost_text(dead: Sequence[str]) -> str:
    """What it means that these voters are dead, and the ways out."""
    return (
        f"nothing can be changed: {', '.join(dead)} had to agree; start {' or '.join(dead)} again, or, where"
        " they are lost for good, stop this node and give it `sllmd recover --force-new-cluster`"
    )


def _labels(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(row["labels"].items())) or "-"


_NODE_COLUMNS = (
    Column("NODE", lambda row: row["name"]),
    Column("ADDRESS", lambda row: row["address"] or "-"),
    Column("DEVICES", lambda row: ", ".join(row["devices"]) or "-"),
    Column("LABELS", _labels),
    Column("CORDONED", lambda row: "yes" if row["cordoned"] else "no"),
    Column("ID", lambda row: row["id"]),
    Column("REVISION", lambda row: str(row["revision"]), wide=True, right=True),
)


@command(node_app, "list")
def node_list(session: Session) -> None:
    """List the nodes that the cluster admitted, whether they live or not."""
    found = session.client.get("/sllmd/v1/nodes")
    by_name = sorted(found["nodes"], key=lambda row: (row["name"], row["id"]))
    session.show_rows(by_name, _NODE_COLUMNS, empty="no node was admitted yet")


@command(node_app, "rm")
def node_rm(
    session: Session,
    node: NodeArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Although it lives: it is cut off and must join anew.")
    ] = False,
) -> None:
    """Remove a dead node from the cluster for good; its name and its vote are free again.

    It keeps the key of gossip: if it is not trusted any more, run `sllmd keyring rotate` then.
    """
    query = "?force=true" if force else ""
    removed = session.client.delete(f"/sllmd/v1/nodes/{segment(node)}{query}")
    session.show_object(removed, f"{removed['node']} is no member any more")
    session.note("It still has the key of gossip: if it is not trusted any more, run `sllmd keyring rotate`.")


@command(app, "leave")
def leave(
    session: Session,
    drain: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="How long running requests may finish. (default: configured)"),
    ] = None,
) -> None:
    """Let the node that is asked leave the cluster for good; its daemon ends.

    Running requests finish, leadership and vote go to other nodes. To stop a node for a while, stop its
    daemon.
    """
    order = {} if drain is None else {"drain_seconds": duration_option("--drain", drain)}
    status = session.client.get("/sllmd/v1/status")
    running = status["requests_running"]
    session.note(f"{status['node']} leaves{f'; {running} running requests may finish' if running else ''}")
    report = session.client.post("/sllmd/v1/leave", order)
    _wait_until_gone(session)
    cut = f"; {report['cut_short']} requests were cut short" if report["cut_short"] else ""
    session.show_object(report, f"{report['node']} left the cluster, its daemon has ended{cut}")


def _wait_until_gone(session: Session) -> None:
    deadline_seconds = time.monotonic() + GONE_SECONDS
    while session.client.answers():
        if time.monotonic() >= deadline_seconds:
            raise SllmdError(
                f"the node left the cluster, and its daemon still answers at {session.client.address}",
                hint="look at its log",
            )
        time.sleep(_ASK_SECONDS)

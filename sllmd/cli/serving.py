"""Commands that ask a daemon about what it serves, or tell it what to hold."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from sllmd.cli.agreement import cluster_pairs, state_text
from sllmd.cli.client import DaemonUnreachable, error_of, segment
from sllmd.cli.plan import plan_text
from sllmd.cli.progress import byte_bar
from sllmd.cli.session import ModelArgument, Session, command, duration_option
from sllmd.cli.tables import Column, counted, printable
from sllmd.cli.waterfall import waterfall
from sllmd.core.errors import Conflict, ModelNotFound, SllmdError
from sllmd.core.units import format_bytes, format_seconds

app = typer.Typer()

_WAIT_INTERVAL_SECONDS = 0.1


class TargetTier(StrEnum):
    """Where ``load`` can bring a model."""

    DRAM = "dram"
    DEVICE = "device"


def _until(row: Mapping[str, Any]) -> str:
    seconds = row.get("expires_in_seconds")
    if seconds is not None:
        return format_seconds(seconds)
    if row["running"] or row["waiting"]:
        return "busy"
    return "for ever" if row["state"] == "serving" else "-"


def _keep_alive(row: Mapping[str, Any]) -> str:
    """Of a copy that only rests in DRAM, nobody decides beforehand."""
    if "keep_alive_seconds" not in row:
        return "-"
    return "for ever" if row["keep_alive_seconds"] < 0 else format_seconds(row["keep_alive_seconds"])


def _replica_state(row: Mapping[str, Any]) -> str:
    if row["state"] != "starting" or not row["size_bytes"]:
        return str(row["state"])
    percent = 100 * row["loaded_bytes"] / row["size_bytes"]
    return f"loading {percent:.0f} % {format_bytes(row['bytes_per_second'])}/s"


_REPLICA_COLUMNS = (
    Column("MODEL", lambda row: row["model"]),
    Column("NODE", lambda row: row["node"]),
    Column("DEVICE", lambda row: ",".join(row["devices"]) or "-"),
    Column("STATE", _replica_state),
    Column("TIER", lambda row: row["tier"]),
    Column("SIZE", lambda row: format_bytes(row["size_bytes"]), right=True),
    Column("REQS", lambda row: str(row["running"]), right=True),
    Column("WAITING", lambda row: str(row["waiting"]), right=True),
    Column("UNTIL", _until),
    Column("KEEP", _keep_alive, wide=True, right=True),
    Column("PID", lambda row: str(row.get("pid") or "-"), wide=True, right=True),
    Column("RSS", lambda row: format_bytes(row["rss_bytes"]) if row.get("rss_bytes") else "-", wide=True),
    Column("REPLICA", lambda row: row["replica_id"], wide=True),
)


@command(app, "ps")
def ps(session: Session) -> None:
    """Show the replicas that are loaded or on their way, and the copies that rest in DRAM, on all nodes."""
    cluster = session.client.get("/sllmd/v1/loaded")
    rows = [row for node in cluster["nodes"] for row in _rows_of(node)]
    session.show_rows(rows, _REPLICA_COLUMNS, empty="nothing is loaded; the next request loads its model")
    for lost in cluster["unreachable"]:
        session.note(f"{lost['node'] or lost['id']} does not answer: {lost['reason']}")


def _rows_of(node: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    held = {row["model"] for row in node["replicas"]}
    resting = (_resting(copy) for copy in node["copies"] if copy["model"] not in held)
    for row in (*node["replicas"], *resting):
        yield {"node": node["node"], **row}


def _resting(copy: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in DRAM without a replica, as a row beside replicas."""
    return {
        "replica_id": "",
        "model": copy["model"],
        "state": "warm",
        "devices": [],
        "tier": "dram",
        "size_bytes": copy["size_bytes"],
        "loaded_bytes": copy["size_bytes"],
        "bytes_per_second": 0.0,
        "running": 0,
        "waiting": 0,
        "expires_in_seconds": None,
        "pid": None,
        "rss_bytes": None,
    }


@command(app, "load")
def load(
    session: Session,
    model: ModelArgument,
    tier: Annotated[TargetTier, typer.Option(help="How far up.")] = TargetTier.DEVICE,
) -> None:
    """Load a model before anybody asks for it."""
    last = follow_load(session, model, tier)
    where = "is ready to answer" if tier is TargetTier.DEVICE else "is in DRAM"
    text = f"{last['model']} {where}: {format_bytes(last['total_bytes'])}"
    session.show_object(last, f"{text} in {format_seconds(last['seconds'])}")


def follow_load(session: Session, model: str, tier: TargetTier) -> dict[str, Any]:
    """Load with a bar; the last status. Raises what kept the model from being loaded."""
    last: dict[str, Any] = {}
    steps = session.client.stream(f"/sllmd/v1/models/{segment(model)}/load", {"tier": tier.value})
    with byte_bar(model, shown=session.shows_progress, color=session.color) as update:
        for last in steps:
            update(last["stage"], last["current_bytes"], last["total_bytes"])
    if last.get("status") != "ready":
        reason = last.get("message") or "the daemon ended the load without a word"
        told = {"message": f"{model}: {reason}", "code": last.get("code")}
        error = error_of(500, {"error": told}, None)
        error.hint = error.hint or "the daemon's log has the details"
        raise error
    return last


@command(app, "unload")
def unload(session: Session, model: ModelArgument) -> None:
    """Take a model out of memory; requests that run on it are finished first."""
    report = session.client.post(f"/sllmd/v1/models/{segment(model)}/unload")
    freed = (
        f"{'its replica stopped' if report['device_replicas'] else 'no replica ran'}, "
        f"{format_bytes(report['dram_bytes'])} of DRAM freed"
    )
    session.show_object(report, f"{report['model']}: {freed}")


_COPY_COLUMNS = (
    Column("MODEL", lambda row: row["model"]),
    Column("SIZE", lambda row: format_bytes(row["size_bytes"]), right=True),
    Column("STATE", lambda row: "loaded" if row["loaded"] else "loading"),
    Column("USED BY", lambda row: str(row["leases"]), right=True),
    Column("READ", lambda row: "direct" if row["direct_io"] else "page cache"),
    Column("IDLE", lambda row: "-" if row["leases"] else format_seconds(row["idle_seconds"]), right=True),
    Column("DIGEST", lambda row: row["digest"], wide=True),
)


@command(app, "cache")
def cache(
    session: Session,
    evict: Annotated[str | None, typer.Option(metavar="MODEL", help="Free this model's copy.")] = None,
) -> None:
    """Show the DRAM tier, or evict a model from it."""
    if evict is not None:
        freed = session.client.post("/sllmd/v1/cache/evict", {"model": evict})
        if not freed["freed_bytes"]:
            raise _nothing_freed(session, evict)
        session.show_object(freed, f"{format_bytes(freed['freed_bytes'])} freed")
        return
    books = session.client.get("/sllmd/v1/cache")
    head = [
        ("used", _dram_text(books)),
        ("memory", books["pinned"]),
        ("pages", books["pages"]),
    ]
    if books["draining_bytes"]:
        head.append(("draining", f"{format_bytes(books['draining_bytes'])} of loads that were given up"))
    speeds = books["bandwidth_bytes_per_second"]
    head += [(f"{hop} measured", f"{format_bytes(speed)}/s") for hop, speed in speeds.items()]
    text = session.fields(head)
    if books["copies"]:
        text = f"{text}\n\n{session.table(books['copies'], _COPY_COLUMNS).rstrip()}"
    session.show_object(books, text)


def _nothing_freed(session: Session, name: str) -> SllmdError:
    model = session.client.get(f"/sllmd/v1/models/{segment(name)}")
    copies = {copy["digest"]: copy for copy in session.client.get("/sllmd/v1/cache")["copies"]}
    copy = copies.get(model["digest"])
    if copy is None:
        return ModelNotFound(f"{name} is not in DRAM")
    return Conflict(
        f"{name} is in use, {copy['leases']} times", hint=f"`sllmd unload {name}` stops its replica first"
    )


@command(app, "status")
def status(
    session: Session,
    wait: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Wait so long for the daemon to be ready.")
    ] = None,
) -> None:
    """Show the node and its cluster: who leads, what is wrong, devices, memory."""
    if wait is not None:
        _wait_until_ready(session, duration_option("--wait", wait))
    node = session.client.get("/sllmd/v1/status")
    session.show_object(node, session.fields(_status_pairs(node)))


def _wait_until_ready(session: Session, seconds: float) -> None:
    deadline_seconds = time.monotonic() + seconds
    while True:
        try:
            session.client.get("/readyz")
        except DaemonUnreachable:
            if time.monotonic() >= deadline_seconds:
                raise
        else:
            return
        time.sleep(_WAIT_INTERVAL_SECONDS)


def _status_pairs(node: Mapping[str, Any]) -> list[tuple[str, str]]:
    cache_books = node["cache"]
    pairs = [
        ("node", f"{node['node']}, sllmd {node['version']}, {state_text(node)}"),
        ("up", format_seconds(node["uptime_seconds"])),
        *cluster_pairs(node.get("cluster")),
        ("listens on", "  ".join(node["listen"])),
        ("store", f"{node['store_directory']}, {counted(node['models'], 'model')}"),
        ("requests", f"{node['requests_running']} running, {node['requests_waiting']} waiting"),
        *moves_pairs(node["moves"], node["mirror"]),
        ("dram", _dram_text(cache_books)),
        ("", f"memory {cache_books['pinned']}"),
        ("", f"pages {cache_books['pages']}"),
    ]
    for device in node["devices"]:
        memory = format_bytes(device["memory_bytes"]) if device["memory_bytes"] else "shares DRAM"
        replicas = counted(device["replicas"], "replica")
        pairs.append(("device", f"{device['name']}, {device['description']}, {memory}, {replicas}"))
    return pairs + [("process", _process_text(process)) for process in node["processes"]]


def moves_pairs(moves: Mapping[str, Any], mirror: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Changes of place and copies of streams, where there have been any."""
    words = ("under_way", "moved", "resumed", "called_off", "failed")
    told = [f"{moves[word]} {word.replace('_', ' ')}" for word in words if moves[word]]
    if moves["pause_ms_max"]:
        told.append(f"longest pause {format_seconds(moves['pause_ms_max'] / 1000)}")
    kept = [f"{mirror['copies']} kept for other nodes"] if mirror["copies"] else []
    kept += [f"{mirror[word]} {word}" for word in ("late", "alone", "refused", "resumed") if mirror[word]]
    return [(name, ", ".join(parts)) for name, parts in (("moves", told), ("streams", kept)) if parts]


def _dram_text(books: Mapping[str, Any]) -> str:
    used, budget = format_bytes(books["used_bytes"]), format_bytes(books["budget_bytes"])
    kept = f", {format_bytes(books['reserve_bytes'])} more kept in reserve" if books["reserve_bytes"] else ""
    return f"{used} of {budget}{kept}"


_ROLES = {"waiting": "waiting worker, most of it shared with the zygote"}


def _process_text(process: Mapping[str, Any]) -> str:
    role = process["role"]
    who = f"worker of {process['model']}" if process["model"] else _ROLES.get(role, role)
    shared_bytes = process["rss_bytes"] - process["anonymous_bytes"]
    resident = format_bytes(process["rss_bytes"])
    return f"{who}, pid {process['pid']}, {resident} ({format_bytes(shared_bytes)} files and shared memory)"


@command(app, "explain")
def explain(
    session: Session,
    request: Annotated[
        str, typer.Argument(metavar="ID", help="A request's id; `last`: the latest.")
    ] = "last",
) -> None:
    """Show where a request's time went; `last` is the latest one that the node you ask has taken."""
    found = session.client.get(f"/sllmd/v1/requests/{segment(request)}")
    session.show_object(found, request_text(session, found))


def request_text(session: Session, found: Mapping[str, Any]) -> str:
    """Where the time of a request's generations went, on which nodes they ran, and why there."""
    return "\n\n".join(_explained(session, each, found["names"]) for each in found["generations"])


def _explained(session: Session, generation: Mapping[str, Any], names: Mapping[str, str]) -> str:
    plan = generation.get("decision")
    picture = waterfall(generation, names)
    if plan is None:
        return picture
    chosen = f"{printable(names.get(plan['leader'], plan['leader']))} decided (epoch {plan['epoch']})"
    return "\n".join([picture, "", chosen, plan_text(session, plan, names)])

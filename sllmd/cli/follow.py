"""Commands that follow what happens, until somebody stops them.

A connection that breaks is made again and goes on where it was; what was missed meanwhile is told. Nodes have
events and logs of their own, so that a place in one means nothing in another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from sllmd.cli.cluster import member_state
from sllmd.cli.session import AnyNodeArgument, OutputFormat, Session, command, duration_option
from sllmd.cli.tables import as_json, printable
from sllmd.core.errors import BusyError, CallerError, SllmdError
from sllmd.roles.kinds import KINDS

app = typer.Typer()

AGAIN_SECONDS = 60.0
"""How long a daemon that went away is asked again: longer than a restart."""
_PAUSE_SECONDS = 1.0
_GAP = "gap"
_GONE = {"dead": "is dead", "stopped": "was stopped", "left": "left the cluster for good"}
"""States of a node that answers nobody."""

Entry = Mapping[str, Any]


class Level(StrEnum):
    """How serious a line is."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_KINDS_HELP = "\b\nWhat can happen:\n" + "\n".join(f"  {kind:<24}{told}" for kind, told in KINDS.items())
NoFollowOption = Annotated[bool, typer.Option("--no-follow", help="Show what is remembered, and end.")]


@command(app, "events", epilog=_KINDS_HELP)
def events(
    session: Session,
    node: AnyNodeArgument = None,
    since: Annotated[
        str, typer.Option(metavar="DURATION", help="Begin with what happened this long ago.")
    ] = "10m",
    no_follow: NoFollowOption = False,
) -> None:
    """Follow what happens in the cluster, as one node sees it; with -o json one object a line.

    Each has id, time (Unix seconds), kind, text, node (which it is about, or where it happened) and told_by
    (which saw it), and facts of its kind.
    """
    query = {"since": str(time.time() - duration_option("--since", since)), "node": node}
    _print_all(session, "/sllmd/v1/events", query, event_line, follow=not no_follow)


@command(app, "monitor")
def monitor(
    session: Session,
    node: AnyNodeArgument = None,
    level: Annotated[Level, typer.Option(help="The least serious lines to show.")] = Level.INFO,
    model: Annotated[str | None, typer.Option(help="Only lines about this model.")] = None,
    request: Annotated[str | None, typer.Option(metavar="ID", help="Only lines about this request.")] = None,
    lines: Annotated[
        int, typer.Option("-n", "--lines", min=0, max=100_000, help="Begin with the newest so many.")
    ] = 20,
    no_follow: NoFollowOption = False,
) -> None:
    """Follow the log of any node; with -o json one object a line."""
    query = {"newest": str(lines), "level": level.value, "model": model, "request": request, "node": node}
    _print_all(session, "/sllmd/v1/logs", query, log_line, follow=not no_follow)


def event_line(entry: Entry, *, wide: bool) -> str:
    """An event for people."""
    words = f"{clock_text(entry['time'], wide=wide)}  {entry['kind']:<18}  {printable(entry['text'])}"
    return f"{words}  [{entry['id']}]" if wide and entry["id"] else words


def log_line(entry: Entry, *, wide: bool) -> str:
    """A line of a log for people."""
    if entry.get("kind") == _GAP:
        return f"{clock_text(entry['time'], wide=wide)}  -- {entry['text']} --"
    known = ("id", "time", "level", "event", "exception")
    fields = [
        f"{key}={_value(value)}" for key, value in entry.items() if key not in known and value is not None
    ]
    words = printable("  ".join([entry["event"], *fields]))
    line = f"{clock_text(entry['time'], wide=wide)}  {entry['level']:<7}  {words}"
    if not entry.get("exception"):
        return line
    return "\n".join([line, *map(printable, entry["exception"].splitlines())])


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else as_json([value], lines=True).rstrip()


def clock_text(seconds: float, *, wide: bool) -> str:
    """A time of day here; with the date if there is room."""
    moment = datetime.fromtimestamp(seconds).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] if wide else moment.strftime("%H:%M:%S")


def _print_all(
    session: Session,
    path: str,
    query: Mapping[str, str | None],
    line: Callable[..., str],
    *,
    follow: bool,
) -> None:
    given = {key: value for key, value in query.items() if value is not None}
    wide = session.output is OutputFormat.WIDE
    for entry in _entries(session, path, given, follow=follow):
        text = line(entry, wide=wide) if session.for_people else as_json(entry, lines=True).rstrip()
        print(text, flush=True)


def _entries(session: Session, path: str, query: dict[str, str], *, follow: bool) -> Iterator[Entry]:
    """Entries for ever, over any number of connections; the first has to come about."""
    query = query if follow else {**query, "follow": "false"}
    patience = _Patience(session, query.get("node"))
    last_id: str | None = None
    while True:
        answered: dict[str, str] = {}
        came = False
        address = f"{path}?{urlencode(query)}"
        try:
            for entry in session.client.follow(address, last_id=last_id, headers_out=answered):
                last_id, came, patience.told = entry["id"] or last_id, True, ""
                yield entry
            if not follow:
                return
            reason = "the stream ended"
        except CallerError:
            raise
        except SllmdError as error:
            if not follow or not (answered or time.monotonic() < patience.ends_seconds):
                raise
            reason = error.message
        patience.wait(reason, answered=bool(answered), came=came)


@dataclass(slots=True)
class _Patience:
    """With a daemon, or another node, that went away: long enough for a restart."""

    session: Session
    node: str | None
    ends_seconds: float = 0.0
    told: str = ""
    """What was said last: not said twice."""

    def wait(self, reason: str, *, answered: bool, came: bool) -> None:
        """Until it is asked again. Raises BusyError when the other node left, or has been away for long.

        ``answered``: the daemon that is asked did; ``came``: entries did.
        """
        state = self._state() if answered else None
        gone = None if state is None else _GONE.get(state)
        now_seconds = time.monotonic()
        if answered and (came or gone is None):
            self.ends_seconds = now_seconds + AGAIN_SECONDS
        if gone is not None and (state == "left" or now_seconds >= self.ends_seconds):
            raise BusyError(
                f"{self.node} {gone}", retry_after_seconds=1, hint="`sllmd members --all` tells more"
            )
        if gone is not None:
            reason = f"{self.node} {gone}"
        elif state is not None:
            reason = f"{self.node}: {reason}"
        if reason != self.told:
            self.session.note(f"{reason}; trying again")
            self.told = reason
        time.sleep(_PAUSE_SECONDS)

    def _state(self) -> str | None:
        """The other node's, as the one that is asked sees it; None: there is no other, or it cannot tell."""
        if self.node is None:
            return None
        try:
            members = self.session.client.get("/sllmd/v1/members")["members"]
        except SllmdError:
            return None
        states = [member_state(row) for row in members if self.node in (row["name"], row["id"])]
        return min(states, key=_GONE.__contains__, default=None)  # its namesake may have left

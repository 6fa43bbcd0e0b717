"""What is wrong with the cluster, in plain words, and what it means for those who use it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from sllmd.core.errors import Conflict
from sllmd.core.units import format_age
from sllmd.roles.status import ClusterStatus, ControlStatus, MemberStatus

STALE_SECONDS = 5.0
"""A catalogue this old is worth a word: whoever decides is heard several times a second."""
_STILL_SERVED = "what is loaded is still served"


def degraded_reasons(cluster: ClusterStatus, *, health: int = 0, now: float) -> tuple[str, ...]:
    """The worst first; empty when all is well. ``now`` is Unix time."""
    members = cluster.members
    return (
        *_agreement(cluster),
        *(_dead(member, cluster.control, now) for member in members if member.state == "dead"),
        *(_suspect(member, now) for member in members if member.state == "suspect"),
        *_conflicts(members),
        *_versions(members),
        *([f"this node answers late ({health} of 8): look at its load, memory and disk"] if health else []),
    )


def majority_lost(control: ControlStatus) -> Conflict | None:
    """Why no change can be agreed on, however often it is tried, and the ways out; None: one may be."""
    dead, count = control.majority_dead, len(control.voters)
    if not dead:
        return None
    told = "the only voter is" if count == 1 else f"{len(dead)} of {count} voters are"
    return Conflict(
        f"{told} dead ({', '.join(dead)}): nothing can be changed, {_STILL_SERVED}",
        hint=f"start {' or '.join(dead)} again; where they are lost for good, stop this node and give it"
        " `sllmd recover --force-new-cluster`",
    )


def _agreement(cluster: ClusterStatus) -> Iterator[str]:
    control = cluster.control
    count, alive = len(control.voters), control.voters_alive
    if (lost := majority_lost(control)) is not None:
        yield f"{lost.message}; {lost.hint}"
    elif cluster.leader is None and count and alive <= count // 2:
        well = f"only {alive} of {count} voters {'is' if alive == 1 else 'are'} well"
        yield f"{well}: changes wait, {_STILL_SERVED}"
    elif cluster.leader is None:
        yield f"nobody leads just now: changes wait, {_STILL_SERVED}"
    if control.age_seconds is None:
        yield "this node has not heard of the catalogue yet: it knows what it knew before it was started"
    elif control.age_seconds > STALE_SECONDS:
        yield f"what this node knows of the catalogue is {format_age(control.age_seconds)} old"


def _dead(member: MemberStatus, control: ControlStatus, now: float) -> str:
    who = f"{member.name}, a voter," if member.role == "voter" else member.name
    remedy = "start it"
    if not control.majority_dead:
        remedy += f", or remove it with `sllmd node rm {member.name}`"
    if member.since is None:
        return f"{who} was not heard of for an hour, or since this node was started: {remedy}"
    return f"{who} is dead for {format_age(now - member.since)}: {remedy}"


def _suspect(member: MemberStatus, now: float) -> str:
    since = f" for {format_age(now - member.since)}" if member.since is not None else ""
    by = f" of {', '.join(member.suspected_by)}" if member.suspected_by else ""
    return f"{member.name} is suspect{since}: no answer to probes{by}"


def _conflicts(members: Sequence[MemberStatus]) -> Iterator[str]:
    counts = Counter(member.name for member in members if member.name_conflict)
    for name, count in sorted(counts.items()):
        yield f"{count} nodes are called {name}: give one another name with --name"


def _versions(members: Sequence[MemberStatus]) -> Iterator[str]:
    counts = Counter(member.version for member in members if member.state == "alive" and member.version)
    if len(counts) > 1:
        told = ", ".join(f"{count} × {version}" for version, count in sorted(counts.items()))
        yield f"nodes run different versions: {told}"

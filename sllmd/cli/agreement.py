"""The cluster in a node's status, for people."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from sllmd.cli.tables import counted
from sllmd.core.units import format_age, format_seconds


def cluster_pairs(cluster: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Lines of ``sllmd status``."""
    if cluster is None:
        return
    yield "cluster", f"{cluster['cluster_id']}: {_members_text(cluster['members'])}; {_leader_text(cluster)}"
    yield "agreement", agreement_text(cluster["control"], sum(_here(cluster["members"]).values()))
    age_seconds = cluster["control"]["age_seconds"]
    age = "not heard of yet" if age_seconds is None else f"{format_seconds(age_seconds)} old"
    yield "catalogue", f"change {cluster['control']['position']}, {age}"
    for reason in cluster["degraded"]:
        yield "degraded", reason


def state_text(node: Mapping[str, Any]) -> str:
    """Whether the node takes work."""
    if node["state"] == "ready":
        return "ready"
    if node["drained_since"] is None:
        return "draining: no new work, what runs moves or ends"
    age = format_age(time.time() - node["drained_since"])
    return f"drained for {age}: nothing runs here, no new work"


def agreement_text(control: Mapping[str, Any], nodes: int) -> str:
    """Who agrees, and what losing one of them means."""
    voters = control["voters"]
    if control["store"] != "raft":
        return f"kept by {control['store']}"
    if not voters:
        return "nobody is known to vote yet"
    names = ", ".join(sorted(voters))
    if len(voters) == 1:
        if nodes <= 1:
            return f"1 voter ({names}), the only node"
        return f"{nodes} nodes, 1 voter ({names}): losing it stops changes, not serving"
    may_fail, alive = control["voters_may_fail"], control["voters_alive"]
    if alive <= len(voters) // 2:
        return f"{len(voters)} voters ({names}), {alive} alive: no majority, nothing can be changed"
    if may_fail:
        return f"{len(voters)} voters ({names}): {may_fail} may fail"
    return f"{len(voters)} voters ({names}): none may fail; one more loss stops changes, not serving"


def _members_text(members: Mapping[str, int]) -> str:
    here = _here(members)
    nodes = sum(here.values())
    text = counted(nodes, "node")
    unwell = {state: count for state, count in here.items() if state != "alive"}
    if not unwell:
        return text
    told = ", ".join(f"{count} {state}" for state, count in sorted({"alive": 0, **here}.items()))
    return f"{text} ({told})"


def _here(members: Mapping[str, int]) -> dict[str, int]:
    """Without those that left."""
    return {state: count for state, count in members.items() if state != "left"}


def _leader_text(cluster: Mapping[str, Any]) -> str:
    if cluster["leader"] is None:
        return f"nobody leads (epoch {cluster['epoch']})"
    return f"{cluster['leader']} leads (epoch {cluster['epoch']})"

"""What happened, told from what was before and what is now. Pure.

Kinds are ``thing.what``, listed in ``kinds``; texts are for people, facts for programs. ``node`` among the
facts is the node that it is about or where it happened; who records it adds itself where there is none.
Nothing here is a secret: of keys and tokens only ids are told, of settings only names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sllmd.cluster.catalogue import Catalogue
from sllmd.cluster.catalogue.records import ApiKey, Deployment, JoinToken, Node, Replica, Setting
from sllmd.cluster.gossip.messages import Status
from sllmd.cluster.roster import MemberView
from sllmd.core.ids import NodeId
from sllmd.roles.kinds import KINDS
from sllmd.roles.status import MoveStatus

NameOf = Callable[[NodeId], str]

CHANGES_MAX = 50
"""Changes of the catalogue told one by one: a node that catches up tells the rest as one."""


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happened; ``kind`` is one of ``KINDS``."""

    kind: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.kind in KINDS, f"an event of kind {self.kind}, which is documented nowhere"


# --- members ----------------------------------------------------------------------------------------


def of_member(before: MemberView | None, after: MemberView | None, name_of: NameOf) -> Iterator[Happening]:
    """What a change of a member means; None: not known, or no longer."""
    if after is None:
        if before is not None:
            who = {"node": before.name, "node_id": before.node}
            yield Happening("member.forgotten", f"{before.name} is no longer listed", who)
        return
    facts: dict[str, Any] = {
        "node": after.name,
        "node_id": after.node,
        "address": after.meta.address if after.meta else after.address,
        "state": after.status.name.lower(),
        "suspected_by": [name_of(node) for node in after.suspected_by],
    }
    if before is None or before.status is not after.status:
        kind, text = _new_status(before, after, name_of)
        yield Happening(kind, text, facts)
    elif before.meta and after.meta and before.meta.version != after.meta.version:
        text = f"{after.name} runs {after.meta.version} now, before {before.meta.version}"
        yield Happening("member.version", text, {**facts, "version": after.meta.version})


def _new_status(before: MemberView | None, after: MemberView, name_of: NameOf) -> tuple[str, str]:
    name = after.name
    match after.status:
        case Status.ALIVE if before is None or before.status is Status.LEFT:
            address = after.meta.address if after.meta else after.address
            return "member.joined", f"{name} ({address}) joined"
        case Status.ALIVE if before is not None and before.status is Status.SUSPECT:
            return "member.alive", f"{name} is alive: it answered after all"
        case Status.ALIVE:
            return "member.alive", f"{name} is back"
        case Status.SUSPECT:
            by = ", ".join(map(name_of, after.suspected_by))
            return "member.suspect", f"{name} is suspect: no answer to probes{f' of {by}' if by else ''}"
        case Status.DEAD:
            return "member.dead", f"{name} is dead: it answered nobody in time"
        case Status.LEFT:
            return "member.left", f"{name} left"


# --- leadership -------------------------------------------------------------------------------------

Lead = tuple[int, NodeId | None]
"""Epoch and leader."""


def of_leadership(before: Lead, after: Lead, name_of: NameOf) -> Iterator[Happening]:
    """A new leader, or none."""
    epoch, leader = after
    if before == after:
        return
    if leader is not None:
        name = name_of(leader)
        facts = {"node": name, "node_id": leader, "leader": name, "leader_id": leader, "epoch": epoch}
        yield Happening("leader.elected", f"{name} leads (epoch {epoch})", facts)
    elif before[1] is not None:
        yield Happening("leader.lost", f"nobody leads (epoch {epoch})", {"leader": None, "epoch": epoch})


# --- catalogue --------------------------------------------------------------------------------------


def of_catalogue(before: Catalogue, after: Catalogue, name_of: NameOf) -> Iterator[Happening]:
    """Every change of what is agreed; many at once as one."""
    happened: list[Happening] = []
    for table, tell in _TELLERS.items():
        for _, old, new in getattr(after, table).changes(getattr(before, table)):
            happened.append(tell(old, new, name_of))
    if len(happened) > CHANGES_MAX:
        facts = {"changes": len(happened), "revision": after.revision}
        text = f"{len(happened)} changes of the catalogue at once: this node caught up"
        happened = [Happening("catalogue.caught_up", text, facts)]
    yield from happened


def _of_node(old: Node | None, new: Node | None, _: NameOf) -> Happening:
    node = new or old
    assert node is not None
    facts = {"node": node.name, "node_id": node.node, "address": node.address}
    if new is None:
        return Happening("node.removed", f"{node.name} is no member any more", facts)
    if old is None:
        return Happening("node.admitted", f"{node.name} was admitted", facts)
    if old.cordoned != new.cordoned:
        if new.cordoned:
            return Happening("node.draining", f"{node.name} is drained: no new work, what runs moves", facts)
        return Happening("node.undrained", f"{node.name} takes work again", facts)
    moved = old.address != new.address
    text = f"{node.name} is at {node.address}" if moved else f"{node.name} has other devices or labels"
    return Happening("node.changed", text, facts)


def _of_deployment(old: Deployment | None, new: Deployment | None, _: NameOf) -> Happening:
    deployment = new or old
    assert deployment is not None
    facts = {"model": deployment.name, "digest": deployment.spec.digest, "revision": deployment.revision}
    what = "created" if old is None else "deleted" if new is None else "changed"
    return Happening(f"deployment.{what}", f"deployment {deployment.name} was {what}", facts)


def _of_intent(old: Replica | None, new: Replica | None, name_of: NameOf) -> Happening:
    replica = new or old
    assert replica is not None
    node = name_of(replica.node)
    facts = {"replica": replica.replica, "model": replica.deployment, "node": node, "state": replica.state}
    state = "gone" if new is None else str(new.state)
    text = f"{replica.deployment} on {node}: {state} (agreed)"
    return Happening(f"intent.{state}", text, {**facts, "state": state})


def _of_key(old: ApiKey | None, new: ApiKey | None, _: NameOf) -> Happening:
    key = new or old
    assert key is not None
    what = "created" if old is None else "revoked" if new is None else "replaced"
    return Happening(
        f"key.{what}", f"API key {key.key_id} was {what}", {"key": key.key_id, "scope": key.scope}
    )


def _of_token(old: JoinToken | None, new: JoinToken | None, _: NameOf) -> Happening:
    token = new or old
    assert token is not None
    what = "created" if old is None else "gone" if new is None or new.is_revoked else "used"
    facts = {"token": token.token_id, "uses_left": new.uses_left if new else 0}
    told = {"created": "was created", "used": "was used", "gone": "is spent, expired or revoked"}[what]
    return Happening(f"token.{what}", f"join token {token.token_id} {told}", facts)


def _of_setting(old: Setting | None, new: Setting | None, _: NameOf) -> Happening:
    setting = new or old
    assert setting is not None
    return Happening("setting.changed", f"the cluster's {setting.key} changed", {"setting": setting.key})


_TELLERS: Mapping[str, Callable[[Any, Any, NameOf], Happening]] = {
    "nodes": _of_node,
    "deployments": _of_deployment,
    "replicas": _of_intent,
    "api_keys": _of_key,
    "tokens": _of_token,
    "settings": _of_setting,
}

# --- this node -------------------------------------------------------------------------------------


def of_start(node: str, version: str) -> Happening:
    """This node's daemon serves."""
    return Happening("node.started", f"{node} serves (sllmd {version})", {"node": node, "version": version})


def of_stop(node: str) -> Happening:
    """This node's daemon drains, to stop."""
    return Happening("node.draining", f"{node} takes no new work: its daemon stops", {"node": node})


def of_refusal(name: str, address: str, reason: str) -> Happening:
    """A node was not let in."""
    facts = {"node": name, "address": address, "reason": reason}
    return Happening("join.refused", f"{name} at {address} was not let in: {reason}", facts)


# --- replicas of this node --------------------------------------------------------------------------


_REPLICA_TEXTS = {
    "starting": "{model} starts on {where}",
    "serving": "{model} serves on {where}",
    "sleeping": "{model} sleeps on {where}",
    "failed": "{model} failed on {where}: {reason}",
    "stopped": "{model} stopped on {where}",
}


def of_replica(
    node: str, model: str, replica: str, devices: Sequence[str], change: str, reason: str | None
) -> Happening:
    """A replica of this node, called ``node``, starts, serves, fails or stops."""
    facts = {"node": node, "model": model, "replica": replica, "devices": list(devices)}
    if reason is not None:
        facts["reason"] = reason
    where = f"{node} ({', '.join(devices)})" if devices else node
    text = _REPLICA_TEXTS[change].format(model=model, where=where, reason=reason)
    return Happening(f"replica.{change}", text, facts)


# --- generations of this node's router --------------------------------------------------------------


def of_move(request: str, model: str, move: MoveStatus, name_of: NameOf) -> Happening:
    """A generation changed its place, or did not."""
    ends = {"source": move.source, "target": move.target}
    names = {end: name_of(NodeId(node)) for end, node in ends.items() if node}
    told = move.model_dump(exclude={"kind", *ends}, exclude_none=True)
    facts = {"request": request, "model": model, **told, **names}
    source, target = (names.get(end, "this node") for end in ends)
    at = "target" if move.result == "done" else "source"
    if at in names:
        facts["node"] = names[at]
    what = "resumed" if move.kind == "failover" else "moved"
    if move.result == "done":
        pause_text = f"pause {move.pause_ms or 0:.0f} ms, {move.tokens} tokens computed"
        text = f"a generation of {model} {what}: {source} → {target} ({pause_text}): {move.reason}"
        return Happening(f"generation.{what}", text, facts)
    text = f"a generation of {model} was not {what} from {source}: {move.outcome} ({move.reason})"
    return Happening(f"generation.not_{what}", text, facts)


# --- streams of this node --------------------------------------------------------------------------


def of_stream(node: str, outcome: str) -> Happening | None:
    """What became of a stream that can be resumed; None: nothing to tell."""
    match outcome:
        case "resumed":
            text = f"a stream that another node told goes on through {node}"
            return Happening("stream.resumed", text, {"node": node})
        case "refused":
            text = f"a stream of {node} has no copy: its keeper has no room ([mirror] bytes_max, copies_max)"
            return Happening("stream.unmirrored", text, {"node": node})
    return None

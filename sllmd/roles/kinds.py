"""What can happen, under the names that events have: the ``kind`` of every event. Pure.

Besides its ``kind`` every event has ``id`` and ``time`` (Unix seconds), ``text`` for people, ``node``, the
name of the node that it is about or where it happened, ``told_by``, the name of the node that saw it, and
facts of its own. Every node sees the cluster for itself: what one learns first, another learns later.
"""

from __future__ import annotations

from collections.abc import Mapping

KINDS: Mapping[str, str] = {
    "member.joined": "a node is heard of anew",
    "member.alive": "a suspect answered after all, or a dead one is back",
    "member.suspect": "a member does not answer probes",
    "member.dead": "a suspect answered nobody in time",
    "member.left": "a node said goodbye: stopped, or gone for good",
    "member.forgotten": "it was dead or left, and is forgotten now",
    "member.version": "a member runs another version than before",
    "leader.elected": "a node leads, in a new epoch",
    "leader.lost": "nobody leads",
    "node.admitted": "a node became a member",
    "node.removed": "a node is no member any more",
    "node.changed": "its address, devices or labels changed",
    "node.started": "its daemon serves",
    "node.draining": "a node is drained, or its daemon stops: no new work, what runs moves",
    "node.undrained": "a drained node takes work again",
    "node.leaving": "it leaves for good: no new work",
    "node.stays": "it could not leave",
    "node.left": "it left for good",
    "join.refused": "a node was not let in",
    "deployment.created": "a model is deployed",
    "deployment.changed": "a model is deployed in another way",
    "deployment.deleted": "a model is no longer deployed",
    "intent.requested": "a replica shall be loaded somewhere",
    "intent.ready": "a replica is agreed to serve",
    "intent.draining": "a replica shall be given up",
    "intent.gone": "a replica is no longer agreed on",
    "key.created": "an API key was made",
    "key.replaced": "an API key has another secret or scope",
    "key.revoked": "an API key opens nothing any more",
    "token.created": "a join token was made",
    "token.used": "a node joined with a token",
    "token.gone": "a join token is spent, expired or revoked",
    "setting.changed": "a setting that the cluster agreed on changed",
    "catalogue.caught_up": "many changes of what is agreed, told as one",
    "replica.starting": "a replica starts",
    "replica.serving": "it serves",
    "replica.sleeping": "it goes to sleep: its devices are free, its process and its memory are kept",
    "replica.failed": "it could not be started, or was lost",
    "replica.stopped": "it stopped",
    "generation.moved": "a generation runs on another node now",
    "generation.resumed": "it goes on elsewhere: where it ran was lost",
    "generation.not_moved": "it stays where it is",
    "generation.not_resumed": "it could not go on",
    "stream.resumed": "a client came back for its stream here, which another node had told",
    "stream.unmirrored": "the node that would keep a stream's copy has no room: it ends with this node",
    "gap": "`lost` entries were missed (null: nobody knows)",
}
"""Kind -> when it is told."""

"""One real member in a process of its own. Lines of JSON say what it shall do, and what it sees.

``python -m tests.cluster.gossiping_process '{"name": ..., "join": [...], ...}'``
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import uvloop

from sllmd.cluster.gossip import GossipSettings, Meta
from sllmd.cluster.membership import Membership
from sllmd.cluster.roster import Identity, Listen
from sllmd.core.ids import NodeId
from sllmd.telemetry.logs import configure_logs
from sllmd.telemetry.settings import LogSettings
from sllmd.wire.seal import Keyring, key_id


def say(what: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"what": what, **fields}) + "\n")
    sys.stdout.flush()


async def obey(membership: Membership, order: dict[str, Any]) -> None:
    match order["do"]:
        case "leave":
            await membership.leave()
            say("left")
        case "install":
            membership.keyring.install(bytes.fromhex(order["key"]))
        case "use":
            membership.keyring.use(key_id(bytes.fromhex(order["key"])))
        case "remove":
            membership.keyring.remove(key_id(bytes.fromhex(order["key"])))
        case "tell":
            membership.tell(Meta("10.0.0.1:1", "1", epoch=order["epoch"], leader=membership.identity.node))
        case "members":
            pass
    members = {
        view.name: {
            "status": view.status.name,
            "incarnation": view.incarnation,
            "epoch": view.meta.epoch if view.meta else None,
        }
        for view in membership.members()
    }
    dropped = {str(reason): count for reason, count in membership.dropped.items()}
    say(
        "done",
        members=members,
        dropped=dropped,
        taken=membership.datagrams.taken,
        hint=membership.leader_hint(),
    )


async def watch(membership: Membership) -> None:
    async for change in membership.changed():
        if change.member is not None:
            suspected_by = list(change.member.suspected_by)
            say(
                "change", name=change.member.name, status=change.member.status.name, suspected_by=suspected_by
            )


async def main() -> None:
    given = json.loads(sys.argv[1])
    configure_logs(LogSettings(), stream=sys.stderr)
    membership = await Membership.start(
        Identity(given.get("cluster", "test"), NodeId(given.get("id", given["name"])), given["name"]),
        Keyring([bytes.fromhex(key) for key in given["keys"]]),
        Meta("127.0.0.1:1", "0.1.0", ("server",)),
        listen=Listen(port=given.get("port", 0)),
        settings=GossipSettings.model_validate(given.get("settings", {})),
    )
    membership.id_taken.add_done_callback(
        lambda taken: taken.cancelled() or say("id taken", by=taken.result())
    )
    watching = asyncio.create_task(watch(membership))
    say("started", address=membership.address)
    if given.get("join"):
        attempt = await membership.join_for_ever(given["join"])
        say("joined" if attempt.joined else "refused", reason=attempt.reason)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        await obey(membership, json.loads(line))
    watching.cancel()
    await membership.close()


if __name__ == "__main__":
    uvloop.run(main())

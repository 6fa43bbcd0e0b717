"""What an operator changes in the cluster: nodes, deployments, API keys.

Every change is one command that the cluster agrees on, asked through any node. Raises ControlUnavailable
(nothing was changed), OutcomeUnknown, and, for what does not fit, RecordNotFound and Conflict; Conflict at
once, too, where most voters are dead: waiting would not help.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sllmd.cluster.catalogue import Catalogue
from sllmd.cluster.catalogue.commands import (
    ApiKeyDelete,
    ApiKeyPut,
    Body,
    DeploymentDelete,
    DeploymentPut,
    NodeRemove,
)
from sllmd.cluster.catalogue.records import Deployment, DeploymentSpec
from sllmd.cluster.catalogue.results import Denied, Done, Reason, Result
from sllmd.core.errors import Conflict, RecordNotFound
from sllmd.core.ids import ModelName, NodeId
from sllmd.roles.fleet import Fleet
from sllmd.roles.retiring import Retire, propose_retiring
from sllmd.roles.status import MemberStatus

SECRET_BYTES = 32
"""256 random bits: a hash of them needs no salt and no slowness."""
KEY_ID_BYTES = 4


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key and its secret, which is told once and kept nowhere."""

    key_id: str
    secret: str
    scopes: tuple[str, ...]


class Steering:
    """Changes, asked through this node."""

    def __init__(self, fleet: Fleet, retire: Retire) -> None:
        """``retire`` has a model's replicas go."""
        self._fleet = fleet
        self._retire = retire

    async def remove_node(self, name: str, *, force: bool = False) -> MemberStatus:
        """A node is no member any more, and will not be let in again. Raises Conflict for one that lives."""
        member = self._fleet.find(name)
        if member.is_me:
            raise Conflict(
                f"{member.name} is the node that you ask", hint="let it go with `sllmd leave`, or ask another"
            )
        if member.state in ("alive", "suspect") and not force:
            raise Conflict(
                f"{member.name} is {member.state}",
                hint="run `sllmd leave` there, or stop it, or cut it off with --force",
            )
        await self._propose(NodeRemove(NodeId(member.id), None))
        return member

    async def put_deployment(
        self, name: str, spec: DeploymentSpec, *, expected: int | None = None
    ) -> Deployment:
        """Deploy a model, or change how."""
        done = await self._propose(DeploymentPut(ModelName(name), spec, expected))
        return Deployment(ModelName(name), spec, done.revision)

    async def delete_deployment(self, name: str, *, expected: int | None = None) -> int:
        """A model is no longer deployed; the revision. Its replicas go first.

        Raises Conflict while they work.
        """
        return (await self._propose(DeploymentDelete(ModelName(name), expected))).revision

    async def create_key(self, key_id: str | None, scopes: Sequence[str]) -> NewKey:
        """A new key. Raises Conflict when there is one of this id."""
        key_id = key_id or os.urandom(KEY_ID_BYTES).hex()
        secret = f"sk-sllm-{key_id}-{secrets.token_urlsafe(SECRET_BYTES)}"
        digest = hashlib.sha256(secret.encode()).hexdigest()
        scope = " ".join(sorted(set(scopes)))
        self._fleet.require_majority()
        result = await self._fleet.cluster.control.propose(ApiKeyPut(key_id, digest, scope, 0))
        if isinstance(result, Denied) and result.reason is Reason.CONFLICT:
            raise Conflict(
                f"there is a key `{key_id}` already",
                hint=f"`sllmd keys revoke {key_id}` ends it, or take another id",
            )
        _done(result)
        return NewKey(key_id, secret, tuple(scope.split()))

    async def revoke_key(self, key_id: str) -> None:
        """A key opens nothing any more, on any node that hears of it."""
        await self._propose(ApiKeyDelete(key_id))

    async def catalogue(self, *, newest: bool = False) -> Catalogue:
        """What is agreed, as this node knows it, or no older than this call (``newest``)."""
        control = self._fleet.cluster.control
        return await control.read() if newest else control.view().catalogue

    async def _propose(self, body: Body) -> Done:
        self._fleet.require_majority()
        return _done(await propose_retiring(self._fleet.cluster.control, body, self._retire))


def _done(result: Result) -> Done:
    """A change that took effect. Raises RecordNotFound and Conflict for one that was refused."""
    if isinstance(result, Denied):
        kind = RecordNotFound if result.reason is Reason.UNKNOWN else Conflict
        raise kind(result.message)
    assert isinstance(result, Done), "only plans have items"
    return result

"""/sllmd/v1: the cluster as its operator sees and changes it, through any node.

What is read is what the answering node knows; ``?newest=true`` asks the cluster, so that the answer is no
older than the question. What is changed is agreed on, or refused, or (``outcome_unknown``) cannot be told.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Self

from aiohttp import web
from pydantic import BaseModel, Field, model_validator

from sllmd.api.following import desk_of, events, flag, logs
from sllmd.api.keys import Scope
from sllmd.api.orders import Order, read_order
from sllmd.api.rooms import ROOMS
from sllmd.cluster.catalogue import Catalogue
from sllmd.cluster.catalogue.records import Deployment, DeploymentSpec, Node
from sllmd.core.errors import InvalidRequest, RecordNotFound
from sllmd.core.ids import Digest, ModelName
from sllmd.roles.status import (
    DeploymentRecord,
    DeploymentRecords,
    KeyRecord,
    KeyRecords,
    NodeRecord,
    NodeRecords,
)
from sllmd.store.credentials import NO_USER_HINT, is_shown, names_user, shown_url

NAME_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"
_Word = Annotated[str, Field(min_length=1, max_length=256)]
"""Every node keeps it: bounded."""


class LeaveOrder(Order):
    """Body of POST leave; may be absent."""

    drain_seconds: float | None = Field(default=None, ge=0, le=24 * 3600)
    """How long running requests may finish; absent: as configured."""


class DeploymentOrder(Order):
    """Body of PUT deployments/{name}."""

    digest: _Word
    source: str = Field(max_length=4096)
    aliases: list[_Word] = Field(default_factory=list, max_length=64)
    keep_alive_seconds: float | None = Field(default=None, ge=-1, allow_inf_nan=False)
    """-1: for ever."""
    min_replicas: int = Field(default=0, ge=0)
    max_replicas: int = Field(default=1, ge=0)
    placement: dict[_Word, _Word] = Field(default_factory=dict, max_length=64)
    target_running: int = Field(default=0, ge=0, le=1_000_000)
    """Generations on a replica beyond which there shall be one more; 0: as many as it runs together."""
    expected: int | None = Field(default=None, ge=0)
    """The revision that it has now; 0: there is none yet; absent: any."""

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}"
            )
        return self


class KeyOrder(Order):
    """Body of POST keys; may be absent."""

    id: str | None = Field(default=None, pattern=NAME_PATTERN)
    scopes: list[Scope] = Field(default=["inference"], min_length=1)


async def members(request: web.Request) -> web.Response:
    """Handler: every member as this node sees it."""
    return _answer(desk_of(request).fleet.status())


async def nodes(request: web.Request) -> web.Response:
    """Handler: the nodes that the cluster admitted."""
    catalogue = await _catalogue(request)
    found = tuple(map(_node_record, catalogue.nodes.values()))
    return _answer(NodeRecords(nodes=found, revision=catalogue.revision))


async def node(request: web.Request) -> web.Response:
    """Handler: one of them, by name or id."""
    wanted = request.match_info["node"]
    for found in (await _catalogue(request)).nodes.values():
        if wanted in (found.name, found.node):
            return _answer(_node_record(found))
    raise RecordNotFound(f"there is no node `{wanted}`", hint="`sllmd members` shows them")


async def remove_node(request: web.Request) -> web.Response:
    """Handler: a dead node is no member any more; one that lives only with ``?force=true``."""
    force = flag(request, "force", default=False)
    member = await desk_of(request).steering.remove_node(request.match_info["node"], force=force)
    return web.json_response({"node": member.name, "id": member.id, "state": member.state, "removed": True})


async def leave(request: web.Request) -> web.Response:
    """Handler: this node leaves for good, and its daemon ends; answers once it is no member any more."""
    order = await read_order(request, LeaveOrder)
    report = await desk_of(request).departure.leave(order.drain_seconds)
    return _answer(report)


async def deployments(request: web.Request) -> web.Response:
    """Handler: the models that the cluster serves, under their names."""
    catalogue = await _catalogue(request)
    found = tuple(map(_deployment_record, catalogue.deployments.values()))
    return _answer(DeploymentRecords(deployments=found, revision=catalogue.revision))


async def deployment(request: web.Request) -> web.Response:
    """Handler: one of them, by name or alias."""
    wanted = request.match_info["name"]
    catalogue = await _catalogue(request)
    found = catalogue.deployments.get(catalogue.names.get(wanted) or "")
    if found is None:
        raise RecordNotFound(f"there is no deployment `{wanted}`")
    return _answer(_deployment_record(found))


async def put_deployment(request: web.Request) -> web.Response:
    """Handler: deploy a model, or change how; 409 when it is not at the ``expected`` revision."""
    order = await read_order(request, DeploymentOrder)
    name, steering = request.match_info["name"], desk_of(request).steering
    if names_user(order.source):
        raise InvalidRequest("`source` is a URL that names a user", param="source", hint=NO_USER_HINT)
    known = (await _catalogue(request)).deployments.get(name)
    same = known is not None and order.source == shown_url(known.spec.source)
    if is_shown(order.source) and not same:
        raise InvalidRequest(
            "`source` has what hides the secrets of an address, and nobody knows that address here",
            param="source",
            hint="give the whole address, with its query",
        )
    spec = DeploymentSpec(
        digest=Digest(order.digest),
        source=known.spec.source if known is not None and same else order.source,
        aliases=tuple(map(ModelName, order.aliases)),
        keep_alive_seconds=order.keep_alive_seconds,
        min_replicas=order.min_replicas,
        max_replicas=order.max_replicas,
        placement=order.placement,
        target_running=order.target_running,
    )
    put = await steering.put_deployment(name, spec, expected=order.expected)
    return _answer(_deployment_record(put))


async def delete_deployment(request: web.Request) -> web.Response:
    """Handler: a model is no longer deployed; its replicas have to be gone before."""
    name = request.match_info["name"]
    revision = await desk_of(request).steering.delete_deployment(name)
    return web.json_response({"name": name, "deleted": True, "revision": revision})


async def keys(request: web.Request) -> web.Response:
    """Handler: the cluster's API keys and those of this node's file; never a secret."""
    found = tuple(
        KeyRecord(id=key.id, scopes=tuple(sorted(key.scopes)), source=source)
        for source, key in request.app[ROOMS].keys.all()
    )
    return _answer(KeyRecords(keys=found))


async def create_key(request: web.Request) -> web.Response:
    """Handler: a new key; the answer is the only place that ever holds its secret."""
    order = await read_order(request, KeyOrder)
    key = await desk_of(request).steering.create_key(order.id, order.scopes)
    return web.json_response({"id": key.key_id, "secret": key.secret, "scopes": list(key.scopes)})


async def revoke_key(request: web.Request) -> web.Response:
    """Handler: a key of the cluster opens nothing any more."""
    key_id = request.match_info["key"]
    await desk_of(request).steering.revoke_key(key_id)
    return web.json_response({"id": key_id, "revoked": True})


async def _catalogue(request: web.Request) -> Catalogue:
    newest = flag(request, "newest", default=False)
    return await desk_of(request).steering.catalogue(newest=newest)


def _node_record(found: Node) -> NodeRecord:
    values = asdict(found)
    return NodeRecord(id=values.pop("node"), **values)


def _deployment_record(found: Deployment) -> DeploymentRecord:
    """Without what signs its address; who puts it back so keeps that."""
    values = asdict(found.spec) | {"source": shown_url(found.spec.source)}
    return DeploymentRecord(name=found.name, revision=found.revision, **values)


def _answer(body: BaseModel) -> web.Response:
    return web.json_response(text=body.model_dump_json())


ROUTES = (
    web.get("/sllmd/v1/members", members),
    web.get("/sllmd/v1/nodes", nodes),
    web.get("/sllmd/v1/nodes/{node}", node),
    web.delete("/sllmd/v1/nodes/{node}", remove_node),
    web.post("/sllmd/v1/leave", leave),
    web.get("/sllmd/v1/deployments", deployments),
    web.get("/sllmd/v1/deployments/{name}", deployment),
    web.put("/sllmd/v1/deployments/{name}", put_deployment),
    web.delete("/sllmd/v1/deployments/{name}", delete_deployment),
    web.get("/sllmd/v1/keys", keys),
    web.post("/sllmd/v1/keys", create_key),
    web.delete("/sllmd/v1/keys/{key}", revoke_key),
    web.get("/sllmd/v1/events", events),
    web.get("/sllmd/v1/logs", logs),
)

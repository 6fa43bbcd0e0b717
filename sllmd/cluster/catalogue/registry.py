"""Deployments and their names, keys, tokens, settings. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from sllmd.cluster.catalogue.commands import (
    ApiKeyDelete,
    ApiKeyPut,
    DeploymentDelete,
    DeploymentPut,
    SettingPut,
    TokenConsume,
    TokenCreate,
    TokenRevoke,
)
from sllmd.cluster.catalogue.records import ApiKey, Deployment, JoinToken, Setting
from sllmd.cluster.catalogue.results import Denied, Done, Reason, Result
from sllmd.cluster.catalogue.state import CLAIMS_MAX, Catalogue

Outcome = tuple[Catalogue, Result]


class Revised(Protocol):
    """Any record."""

    @property
    def revision(self) -> int:
        """The command that changed it last."""
        ...


Record = TypeVar("Record", bound=Revised)


def conflict(record: Revised | None, expected: int | None) -> Denied | None:
    """Compare-and-set: None means that the record is as the command expected it."""
    actual = record.revision if record is not None else 0
    if expected is None or expected == actual:
        return None
    return Denied(Reason.CONFLICT, f"expected revision {expected}, found {actual}", actual)


def missing(what: str) -> Denied:
    """There is no such record."""
    return Denied(Reason.UNKNOWN, f"there is no {what}")


def as_expected(record: Record | None, expected: int | None, what: str) -> Record | Denied:
    """The record, if it is there and as the command expected it."""
    return missing(what) if record is None else conflict(record, expected) or record


def _deployment_put(state: Catalogue, body: DeploymentPut) -> Outcome:
    current = state.deployments.get(body.name)
    wrong = conflict(current, body.expected) or _taken(state, body)
    if wrong is not None:
        return state, wrong
    names = state.names
    for name in (current.name, *current.spec.aliases) if current else ():
        names = names.without(name)
    for name in (body.name, *body.spec.aliases):
        names = names.put(name, body.name)
    deployments = state.deployments.put(body.name, Deployment(body.name, body.spec, state.revision))
    return replace(state, deployments=deployments, names=names), Done(state.revision)


def _taken(state: Catalogue, body: DeploymentPut) -> Denied | None:
    for name in (body.name, *body.spec.aliases):
        owner = state.names.get(name)
        if owner not in (None, body.name):
            return Denied(Reason.NAME_TAKEN, f"{name} is a name of {owner}")
    return None


def _deployment_delete(state: Catalogue, body: DeploymentDelete) -> Outcome:
    current = as_expected(state.deployments.get(body.name), body.expected, f"deployment {body.name}")
    if isinstance(current, Denied):
        return state, current
    replicas = sum(replica.deployment == body.name for replica in state.replicas.values())
    if replicas:
        return state, Denied(Reason.IN_USE, f"{replicas} replicas are meant to exist", current.revision)
    names = state.names
    for name in (current.name, *current.spec.aliases):
        names = names.without(name)
    deployments = state.deployments.without(body.name)
    return replace(state, deployments=deployments, names=names), Done(state.revision)


def _api_key_put(state: Catalogue, body: ApiKeyPut) -> Outcome:
    wrong = conflict(state.api_keys.get(body.key_id), body.expected)
    if wrong is not None:
        return state, wrong
    key = ApiKey(body.key_id, body.sha256, body.scope, state.revision)
    return replace(state, api_keys=state.api_keys.put(body.key_id, key)), Done(state.revision)


def _api_key_delete(state: Catalogue, body: ApiKeyDelete) -> Outcome:
    if body.key_id not in state.api_keys:
        return state, missing(f"key {body.key_id}")
    return replace(state, api_keys=state.api_keys.without(body.key_id)), Done(state.revision)


def _token_create(state: Catalogue, body: TokenCreate) -> Outcome:
    wrong = conflict(state.tokens.get(body.token_id), 0)
    if wrong is not None:
        return state, wrong
    token = JoinToken(body.token_id, body.sha256, body.expires_at_seconds, body.uses, state.revision)
    return replace(state, tokens=state.tokens.put(body.token_id, token)), Done(state.revision)


def _token_consume(state: Catalogue, body: TokenConsume) -> Outcome:
    token = state.tokens.get(body.token_id)
    if token is None or token.is_revoked or token.sha256 != body.sha256:
        return state, missing(f"token {body.token_id}, or it is spent")
    if body.now_seconds >= token.expires_at_seconds:
        return state, Denied(Reason.EXPIRED, f"token {body.token_id} has expired", token.revision)
    if body.claim and body.claim in token.claims:
        return state, Done(token.revision)
    if token.uses_left <= 0:
        return state, missing(f"token {body.token_id}, or it is spent")
    claims = (*token.claims, body.claim)[-CLAIMS_MAX:] if body.claim else token.claims
    left = replace(token, uses_left=token.uses_left - 1, revision=state.revision, claims=claims)
    tokens = state.tokens.put(body.token_id, left)
    for each in list(tokens.values()):
        if body.now_seconds >= each.expires_at_seconds:
            tokens = tokens.without(each.token_id)
    return replace(state, tokens=tokens), Done(state.revision)


def _token_revoke(state: Catalogue, body: TokenRevoke) -> Outcome:
    token = state.tokens.get(body.token_id)
    if token is None or token.is_revoked:
        return state, missing(f"token {body.token_id}")
    revoked = replace(token, uses_left=0, claims=(), revision=state.revision)
    return replace(state, tokens=state.tokens.put(body.token_id, revoked)), Done(state.revision)


def _setting_put(state: Catalogue, body: SettingPut) -> Outcome:
    wrong = conflict(state.settings.get(body.key), body.expected)
    if wrong is not None:
        return state, wrong
    setting = Setting(body.key, body.value, state.revision)
    return replace(state, settings=state.settings.put(body.key, setting)), Done(state.revision)


HANDLERS: dict[type, Callable[[Catalogue, Any], Outcome]] = {
    DeploymentPut: _deployment_put,
    DeploymentDelete: _deployment_delete,
    ApiKeyPut: _api_key_put,
    ApiKeyDelete: _api_key_delete,
    TokenCreate: _token_create,
    TokenConsume: _token_consume,
    TokenRevoke: _token_revoke,
    SettingPut: _setting_put,
}

"""``apply(state, command) -> (state, result)``. Pure.

1. Every command has a number, refused or not.
2. A client's command that was answered before is answered the same again, and not carried out.
3. An order of another epoch than the current one is refused.
4. The command itself decides; what it refuses, it has not changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sllmd.cluster.catalogue import fleet, registry
from sllmd.cluster.catalogue.commands import ClientOpen, Command, EpochBegin, unpack_command
from sllmd.cluster.catalogue.results import Denied, Done, Reason, Result
from sllmd.cluster.catalogue.state import CLIENTS_MAX, OPEN_MAX, Catalogue, Client
from sllmd.core.errors import ProtocolError

Outcome = tuple[Catalogue, Result]


def apply(state: Catalogue, command: Command) -> Outcome:
    """Carry out one command; every node does this with every command, in the log's order."""
    state = replace(state, revision=state.revision + 1)
    if command.client == 0:
        return _carry_out(state, command)
    key = str(command.client)
    client = state.clients.get(key)
    if client is None:
        return state, Denied(Reason.UNKNOWN_CLIENT, "open a client first, or again")
    client = _remembered(state, client, command)
    known = client.results.get(command.seq)
    if known is not None:
        return _remember(state, key, client), known
    refusal = _why_not(client, command)
    if refusal is not None:
        return _remember(state, key, client), refusal
    state, result = _carry_out(state, command)
    client = replace(client, results={**client.results, command.seq: result})
    return _remember(state, key, client), result


def apply_bytes(state: Catalogue, data: bytes) -> Outcome:
    """Carry out a committed entry's data. What cannot be read is refused, and has a number all the same:
    a leader checks commands before it proposes them, so that only a newer version's command ends here."""
    try:
        command = unpack_command(data)
    except ProtocolError as error:
        return replace(state, revision=state.revision + 1), Denied(Reason.UNREADABLE, str(error))
    return apply(state, command)


def _remembered(state: Catalogue, client: Client, command: Command) -> Client:
    """The client's memory without answers that it has."""
    below = max(client.answered_below, command.answered_below)
    results = client.results
    if below > client.answered_below:
        results = {seq: result for seq, result in results.items() if seq >= below}
    return Client(client.label, state.revision, below, results)


def _why_not(client: Client, command: Command) -> Denied | None:
    if command.seq < client.answered_below:
        return Denied(Reason.ANSWERED, f"command {command.seq} was answered before")
    if len(client.results) >= OPEN_MAX:
        return Denied(Reason.TOO_MANY_OPEN, f"{OPEN_MAX} answers are not acknowledged yet")
    return None


def _remember(state: Catalogue, key: str, client: Client) -> Catalogue:
    return replace(state, clients=state.clients.put(key, client))


def _carry_out(state: Catalogue, command: Command) -> Outcome:
    if command.epoch is not None and command.epoch != state.epoch:
        message = f"an order of epoch {command.epoch}; the epoch is {state.epoch}"
        return state, Denied(Reason.STALE_EPOCH, message)
    return _HANDLERS[type(command.body)](state, command.body)


def _client_open(state: Catalogue, body: ClientOpen) -> Outcome:
    clients = state.clients
    if len(clients) >= CLIENTS_MAX:
        oldest, _ = min(clients.items(), key=lambda item: item[1].last_used)
        clients = clients.without(oldest)
    clients = clients.put(str(state.revision), Client(body.label, state.revision, 0, {}))
    return replace(state, clients=clients), Done(state.revision)


def _epoch_begin(state: Catalogue, body: EpochBegin) -> Outcome:
    if body.epoch < state.epoch:
        return state, Denied(Reason.STALE_EPOCH, f"the epoch is {state.epoch} already")
    return replace(state, epoch=body.epoch), Done(state.revision)


_HANDLERS: dict[type, Callable[[Catalogue, Any], Outcome]] = {
    ClientOpen: _client_open,
    EpochBegin: _epoch_begin,
    **registry.HANDLERS,
    **fleet.HANDLERS,
}

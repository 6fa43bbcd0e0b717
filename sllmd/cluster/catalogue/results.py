"""How commands end. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sllmd.core.ids import ReplicaId


class Reason(StrEnum):
    """Why a command, or one item of a plan, was refused."""

    CONFLICT = "conflict"
    """The record is not at the revision that the command expected."""
    UNKNOWN = "unknown"
    """No such record."""
    NAME_TAKEN = "name_taken"
    STALE_EPOCH = "stale_epoch"
    UNKNOWN_CLIENT = "unknown_client"
    """The client's memory has expired: nobody knows whether this command was carried out before."""
    ANSWERED = "answered"
    """The client said that it had this command's answer already."""
    TOO_MANY_OPEN = "too_many_open"
    CORDONED = "cordoned"
    DEVICE_FULL = "device_full"
    NO_SUCH_DEVICE = "no_such_device"
    WRONG_STATE = "wrong_state"
    EXPIRED = "expired"
    REMOVED = "removed"
    """The node was a member and is none any more; its id never comes back."""
    IN_USE = "in_use"
    UNREADABLE = "unreadable"
    """Not a command of this version."""


@dataclass(frozen=True, slots=True)
class Done:
    """It took effect, as the command of this number."""

    revision: int


@dataclass(frozen=True, slots=True)
class Denied:
    """It changed nothing. ``revision`` is the record's, where there is one."""

    reason: Reason
    message: str
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Planned:
    """One item of a plan: accepted if ``reason`` is None."""

    replica: ReplicaId
    reason: Reason | None
    revision: int


@dataclass(frozen=True, slots=True)
class PlanResult:
    """A plan's items in their order, each accepted or refused on its own."""

    items: tuple[Planned, ...]
    revision: int


Result = Done | Denied | PlanResult

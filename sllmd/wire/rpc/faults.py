"""Errors that cross from one node to another and come out as the same class. Pure."""

from __future__ import annotations

from typing import Any

from sllmd.core.errors import ProtocolError, SllmdError

_PLAIN = (str, int, float, bool, type(None))
_TEXT_CHARACTERS_MAX = 4000
"""Of a message or hint: an error must always fit into a frame."""
_FIELDS_MAX = 20


def encode_fault(error: SllmdError) -> tuple[Any, ...]:
    """(names of its class and bases, code, message, hint, fields)."""
    kinds = tuple(kind.__name__ for kind in type(error).__mro__ if issubclass(kind, SllmdError))
    fields = {
        name: value[:_TEXT_CHARACTERS_MAX] if isinstance(value, str) else value
        for name, value in list(vars(error).items())[:_FIELDS_MAX]
        if name not in ("message", "hint", "code") and isinstance(value, _PLAIN)
    }
    hint = error.hint[:_TEXT_CHARACTERS_MAX] if error.hint else None
    return kinds, error.code, error.message[:_TEXT_CHARACTERS_MAX], hint, fields


def decode_fault(value: Any) -> SllmdError:
    """The error, as the nearest class that this release knows; ProtocolError when ``value`` is none."""
    match value:
        case (tuple(kinds), str(code), str(message), str() | None as hint, dict(fields)):
            pass
        case _:
            raise ProtocolError(f"an error that cannot be understood: {value!r:.80}")
    known = _known(SllmdError)
    kind = next((known[name] for name in kinds if isinstance(name, str) and name in known), SllmdError)
    # Constructors differ and may compose their message from their fields: none is called here.
    error = kind.__new__(kind, message)
    SllmdError.__init__(error, message, hint=hint)
    if error.code != code:
        error.code = code
    for name, content in fields.items():
        if isinstance(name, str) and name.isidentifier() and not name.startswith("_"):
            setattr(error, name, content)
    return error


def copy_of(error: SllmdError) -> SllmdError:
    """The same error for one more waiter: one that is raised twice would gather tracebacks."""
    return decode_fault(encode_fault(error))


def _known(kind: type[SllmdError]) -> dict[str, type[SllmdError]]:
    found = {kind.__name__: kind}
    for child in kind.__subclasses__():
        found |= _known(child)
    return found

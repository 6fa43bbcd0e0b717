"""Payloads: one msgpack value each, within a limit. What all framings of this room share. Pure."""

from __future__ import annotations

from typing import Any, cast

import msgpack

from sllmd.core.errors import ProtocolError


def pack_payload(message: Any, bytes_max: int) -> bytes:
    """``message`` as bytes; ProtocolError when it is over the limit or no msgpack value."""
    try:
        payload = cast("bytes", msgpack.packb(message))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"a message cannot be sent: {error}") from error
    if len(payload) > bytes_max:
        raise ProtocolError(f"a message of {len(payload)} bytes is over the limit of {bytes_max}")
    return payload


def unpack_payload(payload: bytes | memoryview) -> Any:
    """The value, arrays as tuples; ProtocolError when the bytes are not exactly one value."""
    try:
        return msgpack.unpackb(payload, use_list=False, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"a frame's payload is not msgpack: {error}") from error

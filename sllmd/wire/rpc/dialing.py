"""Connecting to a node."""

from __future__ import annotations

import asyncio
import ssl
import time

from sllmd.core.errors import DeadlineExceeded, PeerRefused, PeerUnreachable
from sllmd.core.ids import NodeId
from sllmd.wire.rpc.connection import Connection, Local
from sllmd.wire.tls import explain_tls


async def dial(local: Local, host: str, port: int, *, expected: NodeId | None = None) -> Connection:
    """Connect to a node; ``expected``: to this one and no other.

    Raises PeerUnreachable, PeerRefused, ProtocolError, DeadlineExceeded.
    """
    context = None
    if local.tls is not None:
        local.tls.check_own(time.time())
        context = local.tls.client
    return await dial_with(local, host, port, context, expected=expected)


async def dial_with(
    local: Local, host: str, port: int, context: ssl.SSLContext | None, *, expected: NodeId | None = None
) -> Connection:
    """``dial`` with a TLS context of its own: for a node that has no certificate yet."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    trusting = context is not None and context.verify_mode == ssl.CERT_NONE
    connection = Connection(local, address=address, expected=expected, trusting=trusting)
    loop = asyncio.get_running_loop()
    waited = local.settings.connect_timeout_seconds
    try:
        async with asyncio.timeout(waited):
            await loop.create_connection(
                lambda: connection, host, port, ssl=context, server_hostname="" if context else None
            )
            await connection.established()
    except TimeoutError:
        error = connection.lost or DeadlineExceeded(f"{address} does not answer within {waited:g} s")
        connection.abort()
        raise error from None
    except ssl.SSLError as error:
        raise PeerRefused(f"{address}: {explain_tls(error)}") from error
    except OSError as error:
        raise PeerUnreachable(f"{address} cannot be reached: {error.strerror or error}") from error
    except BaseException:
        connection.abort()
        raise
    return connection

"""On the way into a cluster: ask, wait, ask again, until somebody lets this node in or says no.

Nothing is founded here. What the node asks with (its id, its key) is on disk before it first asks, so that
neither its own death nor that of the node it asks costs it its token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import structlog

from sllmd.cluster.home import Belonging, Home
from sllmd.cluster.membership import JOIN_RETRY_SECONDS_MAX, JOIN_RETRY_SECONDS_MIN
from sllmd.cluster.passport import Application, Passport, parse_passport
from sllmd.cluster.settings import RPC_PORT
from sllmd.core.errors import (
    BusyError,
    ConfigError,
    OutcomeUnknown,
    PeerError,
    PeerRefused,
    ProtocolError,
    SllmdError,
)
from sllmd.wire.addresses import split_address
from sllmd.wire.cluster_key import ClusterKey
from sllmd.wire.identity import key_from_pem, key_to_pem, make_identity, make_request, new_key
from sllmd.wire.rpc.joining import ask_to_join
from sllmd.wire.rpc.settings import RpcSettings
from sllmd.wire.seal import Keyring
from sllmd.wire.token import JoinToken

SECRET_BYTES_MAX = 4096
"""Of a file with a token or a key; more is another file."""

_log = structlog.get_logger(__name__)

Secret = JoinToken | ClusterKey


def read_secret_file(path: Path) -> str:
    """A token or a key from its file. Raises ConfigError."""
    try:
        mode, size = path.stat().st_mode, path.stat().st_size
        text = path.read_text(encoding="ascii") if size <= SECRET_BYTES_MAX else ""
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}",
            hint=f"on a member, `sllmd token create --file {path}` makes a join token there, "
            f"`sllmd token keyfile {path}` a cluster key; copy it here",
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} holds no token and no key: {error}") from None
    if mode & 0o007:
        raise ConfigError(
            f"{path} lets strangers into the cluster, and everybody may read it", hint=f"chmod 600 {path}"
        )
    return text.strip()


async def join(
    home: Home,
    belonging: Belonging,
    addresses: Sequence[str],
    secret: Secret | None,
    settings: RpcSettings,
    *,
    devices: dict[str, int],
    labels: dict[str, str],
    store: str,
) -> Belonging:
    """Become a member, however long it takes; what this node is then. ``secret`` None: a --dev cluster.

    Raises PeerRefused when a cluster answered and will not have this node.
    """
    key_pem = home.joining_key() if secret is not None else ""
    if key_pem is None:
        key_pem = key_to_pem(new_key())
        home.save_joining_key(key_pem)
    request = make_request(belonging.node, key_from_pem(key_pem)) if key_pem else ""
    application = Application(belonging.node, belonging.name, request, "", devices, labels, store)
    pause_seconds = JOIN_RETRY_SECONDS_MIN
    while True:
        passport = await _ask_all(application, addresses, secret, settings)
        if passport is not None:
            return move_in(home, belonging, passport, key_pem)
        await asyncio.sleep(pause_seconds)
        pause_seconds = min(JOIN_RETRY_SECONDS_MAX, 2 * pause_seconds)


def move_in(home: Home, belonging: Belonging, passport: Passport, key_pem: str) -> Belonging:
    """Keep what came back; the cluster's id last, because it says that all the rest is there."""
    if passport.certificate_pem:
        key = key_from_pem(key_pem)
        home.save_identity(make_identity(key, passport.certificate_pem, passport.ca_pem))
    home.save_keyring(Keyring(list(passport.keys)))
    home.save_peers(passport.peers)
    member = Belonging(belonging.node, belonging.name, passport.cluster_id)
    home.save_belonging(member)
    home.forget_joining_key()
    return member


async def _ask_all(
    application: Application, addresses: Sequence[str], secret: Secret | None, settings: RpcSettings
) -> Passport | None:
    """One round; None: nobody could answer yet. Raises PeerRefused: somebody refused, nobody let it in."""
    refusal: SllmdError | None = None
    reasons: dict[str, str] = {}
    for address in addresses:
        host, port = split_address(address, default_port=RPC_PORT)
        try:
            answer = await ask_to_join(host, port, secret, application.to_wire(), settings)
            return parse_passport(answer)
        except (PeerRefused, ProtocolError) as error:
            refusal = refusal or error
        except (PeerError, BusyError, OutcomeUnknown) as error:
            reasons[address] = error.message
    if refusal is not None:
        raise PeerRefused(f"cannot join: {refusal.message}", hint=refusal.hint)
    hint = "--dev nodes meet --dev nodes only" if secret is None else None
    _log.warning("cannot join yet, trying on", reasons=reasons, hint=hint)
    return None

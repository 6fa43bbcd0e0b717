"""One-time join tokens: how they look, what is kept of them, when one is good. Pure.

``sllm-join.<id>.<secret>.<sha256 of the CA certificate>``. The last part lets a joiner recognise the cluster
before it says anything secret; the cluster keeps only a hash of the secret.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

from sllmd.core.errors import PeerRefused

SECRET_BYTES = 16
TOKEN_ID_BYTES = 5
REMEDY = "make a new one with `sllmd token create` on a member"
_BEGINNING = "sllm-join."
_CHARACTERS = len(_BEGINNING) + 2 * TOKEN_ID_BYTES + 1 + 2 * SECRET_BYTES + 1 + 64
_TEXT = re.compile(r"sllm-join\.([0-9a-f]{10})\.([0-9a-f]{32})\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What the operator carries from a member to the new node. ``repr`` keeps the secret to itself."""

    token_id: str
    secret: str
    ca_pin: str
    """sha256 of the cluster's CA certificate (DER), in hex."""

    def __str__(self) -> str:
        return f"sllm-join.{self.token_id}.{self.secret}.{self.ca_pin}"

    def __repr__(self) -> str:
        return f"JoinToken({self.token_id!r})"


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What the cluster keeps of a token."""

    token_id: str
    sha256: str
    """Of the secret. It is random and long enough that nobody finds it from here."""
    expires_at_seconds: float
    """Unix time."""
    uses_left: int


def make_token(entropy: bytes, ca_pin: str) -> JoinToken:
    """A token out of ``TOKEN_ID_BYTES + SECRET_BYTES`` random bytes."""
    assert len(entropy) == TOKEN_ID_BYTES + SECRET_BYTES
    return JoinToken(entropy[:TOKEN_ID_BYTES].hex(), entropy[TOKEN_ID_BYTES:].hex(), ca_pin)


def parse_token(text: str) -> JoinToken:
    """Raises PeerRefused when ``text`` is no join token."""
    text = text.strip()
    match = _TEXT.fullmatch(text)
    if match is None and text.startswith(_BEGINNING):
        raise PeerRefused(
            f"this join token is damaged: it has {len(text)} characters, a whole one has {_CHARACTERS}"
            if len(text) != _CHARACTERS
            else "this join token is damaged: a character in it is wrong",
            hint="copy it again; if it is lost, `sllmd token create` on a member makes another",
        )
    if match is None:
        raise PeerRefused(
            "this is no join token",
            hint="one looks like sllm-join.<id>.<secret>.<pin>; `sllmd token create` on a member makes it",
        )
    return JoinToken(*match.groups())


def hash_secret(secret: str) -> str:
    """What is stored and replicated in the secret's place."""
    return hashlib.sha256(secret.encode()).hexdigest()


def record_of(token: JoinToken, *, now_seconds: float, lifetime_seconds: float, uses: int = 1) -> TokenRecord:
    """The record that makes ``token`` good for ``uses`` joins within ``lifetime_seconds``."""
    return TokenRecord(token.token_id, hash_secret(token.secret), now_seconds + lifetime_seconds, uses)


def check_token(record: TokenRecord | None, secret: str, now_seconds: float) -> None:
    """Raises PeerRefused unless ``secret`` opens ``record`` now.

    An unknown token and a wrong secret read alike, and take the same time, so that ids cannot be tried out.
    """
    expected = record.sha256 if record is not None else ""
    same = hmac.compare_digest(expected.encode(), hash_secret(secret).encode())
    if record is None or not same:
        raise PeerRefused("the join token is not known here, or it was used up", hint=REMEDY)
    if now_seconds >= record.expires_at_seconds:
        raise PeerRefused("the join token has expired", hint=REMEDY)
    if record.uses_left <= 0:
        raise PeerRefused("the join token was used up", hint=REMEDY)


def check_pin(token: JoinToken, ca_pin: str) -> None:
    """Raises PeerRefused unless the CA that a server presented is the one that the token names."""
    if not hmac.compare_digest(token.ca_pin, ca_pin):
        raise PeerRefused(
            "the cluster that answered is not the one the join token was made for",
            hint="check the address; somebody else answers there, or the cluster was made anew",
        )

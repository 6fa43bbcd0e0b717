"""Join tokens as an operator makes, sees and revokes them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import structlog

from sllmd.cluster.catalogue.commands import TokenCreate, TokenRevoke
from sllmd.cluster.catalogue.results import Denied
from sllmd.cluster.control import ControlStore
from sllmd.core.errors import RecordNotFound
from sllmd.wire.cluster_key import ClusterKey
from sllmd.wire.token import SECRET_BYTES, TOKEN_ID_BYTES, JoinToken, hash_secret, make_token

LIFETIME_SECONDS = 24 * 3600.0
"""Of a token, unless its maker says otherwise: long enough to set a machine up, too short to be found."""
USES_MAX = 1 << 31
FOR_EVER_SECONDS = 1e11
"""Unix time in the year 5138: until when the cluster key opens."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TokenStatus:
    """What may be shown of a token. The secret is told once, when it is made."""

    token_id: str
    expires_at_seconds: float
    uses_left: int
    used: int


class Tokens:
    """Tokens of one cluster."""

    def __init__(self, control: ControlStore, ca_pin: str) -> None:
        self._control = control
        self._ca_pin = ca_pin

    async def create(
        self, *, lifetime_seconds: float = LIFETIME_SECONDS, uses: int = 1
    ) -> tuple[JoinToken, float]:
        """A new token, and until when it is good (Unix time). Raises ControlUnavailable, OutcomeUnknown."""
        token = make_token(os.urandom(TOKEN_ID_BYTES + SECRET_BYTES), self._ca_pin)
        expires_at_seconds = min(time.time() + lifetime_seconds, FOR_EVER_SECONDS)
        await self._put(token, expires_at_seconds, uses)
        return token, expires_at_seconds

    async def register(self, key: ClusterKey) -> None:
        """Let the cluster key open, unless somebody revoked it: that is for ever. Raises as ``create``."""
        token = key.token_for(self._ca_pin)
        known = self._control.view().catalogue.tokens.get(token.token_id)
        if known is None:
            await self._put(token, FOR_EVER_SECONDS, USES_MAX)
        elif known.is_revoked:
            _log.warning(
                "the cluster key was revoked: nobody joins with it any more",
                hint="`sllmd token keyfile PATH` makes another; name it in [cluster] secret_file",
            )

    def list(self) -> list[TokenStatus]:
        """Those that may still be used, as far as this node knows."""
        now_seconds = time.time()
        return [
            TokenStatus(one.token_id, one.expires_at_seconds, one.uses_left, len(one.claims))
            for one in self._control.view().catalogue.tokens.values()
            if one.uses_left > 0 and one.expires_at_seconds > now_seconds
        ]

    async def revoke(self, token_id: str) -> None:
        """Nobody joins with it any more; who did stays. Raises RecordNotFound when there is none."""
        result = await self._control.propose(TokenRevoke(token_id))
        if isinstance(result, Denied):
            raise RecordNotFound(f"there is no join token `{token_id}`", hint="`sllmd token list` shows them")

    async def _put(self, token: JoinToken, expires_at_seconds: float, uses: int) -> None:
        body = TokenCreate(token.token_id, hash_secret(token.secret), expires_at_seconds, uses)
        await self._control.propose(body)

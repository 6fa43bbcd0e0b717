"""The cluster key: one secret in a file that a scripted fleet shares, made before there is a cluster. Pure.

``sllm-key.<64 hex digits>``. It does three things, each with a key of its own derived from it:

* it opens the cluster like a join token that does not wear out (``token_for``);
* it proves to a joiner that a CA is the cluster's (``vouch``), which a token does by its pin;
* it lets nodes that have no cluster yet tell each other so (``prove``).

It is random and long, so that nobody finds it from what was derived.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from sllmd.core.errors import ConfigError, PeerRefused
from sllmd.wire.token import SECRET_BYTES, TOKEN_ID_BYTES, JoinToken

KEY_BYTES = 32
NONCE_BYTES = 16
_TEXT = re.compile(r"sllm-key\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, repr=False)
class ClusterKey:
    """See the module."""

    secret: bytes

    def __str__(self) -> str:
        return f"sllm-key.{self.secret.hex()}"

    def token_for(self, ca_pin: str) -> JoinToken:
        """The join token that this key is, for the cluster with this CA."""
        material = self._derive(b"token")
        token_id, secret = material[:TOKEN_ID_BYTES], material[-SECRET_BYTES:]
        return JoinToken(token_id.hex(), secret.hex(), ca_pin)

    def vouch(self, nonce: bytes, ca_pem: str) -> bytes:
        """Proof, for who sent ``nonce``, that a holder of the key says: this is the cluster's CA."""
        return hmac.digest(self._derive(b"vouch"), nonce + ca_pem.encode(), "sha256")

    def check_vouched(self, nonce: bytes, ca_pem: str, proof: bytes) -> None:
        """Raises PeerRefused unless ``proof`` is what ``vouch`` gives."""
        if not hmac.compare_digest(self.vouch(nonce, ca_pem), proof):
            raise PeerRefused(
                "the node that answered does not have this cluster key",
                hint="give all nodes the same [cluster] secret_file, or check the address",
            )

    def prove(self, *said: bytes) -> bytes:
        """Proof that a holder of the key said this."""
        lengths = b"".join(len(part).to_bytes(4, "big") for part in said)
        return hmac.digest(self._derive(b"prove"), lengths + b"".join(said), "sha256")

    def _derive(self, purpose: bytes) -> bytes:
        return hmac.digest(self.secret, b"sllmd cluster key " + purpose, "sha256")


def parse_cluster_key(text: str) -> ClusterKey:
    """Raises ConfigError when ``text`` is no cluster key; never says what it is instead."""
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise ConfigError("this is no cluster key", hint="`sllmd token keyfile PATH` makes one")
    return ClusterKey(bytes.fromhex(match[1]))

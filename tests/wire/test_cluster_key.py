"""The cluster key: what is derived from it tells nothing, and only holders make it."""

from __future__ import annotations

import pytest

from sllmd.core.errors import ConfigError, PeerRefused
from sllmd.wire.cluster_key import ClusterKey, parse_cluster_key
from sllmd.wire.token import parse_token

KEY, OTHER = ClusterKey(bytes(range(32))), ClusterKey(bytes(32))
PIN = "ab" * 32


def test_it_goes_through_a_file() -> None:
    assert parse_cluster_key(f"{KEY}\n") == KEY


@pytest.mark.parametrize(
    "text", ["", "sllm-key.", f"sllm-key.{'0' * 63}", f"sllm-key.{'G' * 64}", "sllm-join.a.b.c"]
)
def test_what_is_none_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ConfigError, match="this is no cluster key") as caught:
        parse_cluster_key(text)
    assert not text or text not in str(caught.value)


def test_it_is_a_token_that_the_key_cannot_be_read_from() -> None:
    token = KEY.token_for(PIN)
    assert parse_token(str(token)) == token
    assert token == KEY.token_for(PIN)
    assert token.secret != OTHER.token_for(PIN).secret
    assert token.secret not in str(KEY)


def test_only_a_holder_vouches_for_a_ca_and_only_for_that_question() -> None:
    proof = KEY.vouch(b"nonce", "ca")
    KEY.check_vouched(b"nonce", "ca", proof)
    for nonce, ca, told in ((b"other", "ca", proof), (b"nonce", "another", proof), (b"nonce", "ca", b"")):
        with pytest.raises(PeerRefused, match="does not have this cluster key"):
            KEY.check_vouched(nonce, ca, told)
    with pytest.raises(PeerRefused):
        OTHER.check_vouched(b"nonce", "ca", proof)


def test_proofs_do_not_confuse_what_was_said() -> None:
    assert KEY.prove(b"ab", b"c") != KEY.prove(b"a", b"bc")
    assert KEY.prove(b"a") != OTHER.prove(b"a")


def test_its_secret_is_never_shown_by_accident() -> None:
    assert KEY.secret.hex() not in repr(KEY)

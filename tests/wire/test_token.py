import pytest

from sllmd.core.errors import PeerRefused
from sllmd.wire.token import (
    SECRET_BYTES,
    TOKEN_ID_BYTES,
    TokenRecord,
    check_pin,
    check_token,
    hash_secret,
    make_token,
    parse_token,
    record_of,
)

ENTROPY = bytes(range(TOKEN_ID_BYTES + SECRET_BYTES))
PIN = "ab" * 32
TOKEN = make_token(ENTROPY, PIN)
RECORD = record_of(TOKEN, now_seconds=1000.0, lifetime_seconds=60.0)


def test_a_token_reads_back() -> None:
    text = str(TOKEN)
    assert text == f"sllm-join.0001020304.05060708090a0b0c0d0e0f1011121314.{PIN}"
    assert parse_token(f" {text}\n") == TOKEN


def test_a_token_does_not_tell_its_secret_by_accident() -> None:
    assert TOKEN.secret not in repr(TOKEN)
    assert TOKEN.secret not in str(RECORD)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sllm-join",
        "sllm-join.1.2.3",
        str(TOKEN)[:-1],
        str(TOKEN) + "0",
        str(TOKEN).upper(),
        "x" + str(TOKEN),
    ],
)
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(PeerRefused, match=r"no join token|is damaged"):
        parse_token(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{TOKEN}0", "119 characters, a whole one has 118"),
        (str(TOKEN)[:-1], "117 characters, a whole one has 118"),
        (f"{str(TOKEN)[:-1]}g", "a character in it is wrong"),
    ],
)
def test_a_damaged_token_says_so(text: str, reason: str) -> None:
    with pytest.raises(PeerRefused, match=reason) as refused:
        parse_token(text)
    assert TOKEN.secret not in str(refused.value)


def test_a_good_token() -> None:
    check_token(RECORD, TOKEN.secret, 1059.9)


@pytest.mark.parametrize(
    ("record", "secret", "now", "reason"),
    [
        (None, TOKEN.secret, 1000.0, "not known"),
        (RECORD, "0" * 32, 1000.0, "not known"),
        (RECORD, "", 1000.0, "not known"),
        (RECORD, hash_secret(TOKEN.secret), 1000.0, "not known"),
        (RECORD, TOKEN.secret, 1060.0, "expired"),
        (TokenRecord(RECORD.token_id, RECORD.sha256, 2000.0, 0), TOKEN.secret, 1000.0, "used up"),
    ],
)
def test_a_token_that_is_not_good(record, secret, now, reason) -> None:
    with pytest.raises(PeerRefused, match=reason):
        check_token(record, secret, now)


def test_the_pin() -> None:
    check_pin(TOKEN, PIN)
    with pytest.raises(PeerRefused, match="not the one the join token was made for"):
        check_pin(TOKEN, "cd" * 32)

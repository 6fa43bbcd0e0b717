"""What travels when a node is let in never shows its secrets."""

from __future__ import annotations

from sllmd.cluster.passport import Application, Passport, parse_application, parse_passport
from sllmd.core.ids import NodeId

KEY, SECRET = b"K" * 32, "s" * 32


def test_secrets_stay_out_of_logs_and_errors() -> None:
    passport = Passport("c", "certificate", "ca", (KEY,), ())
    assert "KKK" not in repr(passport)
    assert parse_passport(passport.to_wire() | {"peers": ()}).keys == (KEY,)
    application = Application(NodeId("n"), "n", "request", "", {}, {}, "raft", "id", SECRET)
    assert "sss" not in repr(application)
    wire = application.to_wire()
    assert SECRET not in wire.values()
    assert parse_application(wire | {"token_id": "id", "secret": SECRET}).secret == SECRET

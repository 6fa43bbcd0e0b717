from __future__ import annotations

import pytest

from sllmd.cluster.catalogue import EMPTY, apply_bytes
from sllmd.cluster.catalogue.results import Denied, Reason
from sllmd.cluster.codec import pack
from sllmd.cluster.etcd.keys import Keys, Pointer, pack_batch, pack_pointer, unpack_batch, unpack_pointer
from sllmd.cluster.etcd.requests import prefix_end
from sllmd.core.errors import ProtocolError


def test_a_prefix_ends_behind_all_that_begin_with_it() -> None:
    keys = Keys("/sllmd/c")
    assert keys.commands < keys.command("\x7f\x7f") < prefix_end(keys.commands)
    assert not keys.commands <= keys.leader < prefix_end(keys.commands)
    assert not keys.commands <= Keys("/sllmd/c2").command("1") < prefix_end(keys.commands)


def test_batches_and_pointers_come_back() -> None:
    assert unpack_batch(pack_batch([b"a", b"bc"])) == [b"a", b"bc"]
    pointer = Pointer(7, "7-3", 2, 5)
    assert unpack_pointer(pack_pointer(pointer)) == pointer
    with pytest.raises(ProtocolError):
        unpack_pointer(b"\x00")


@pytest.mark.parametrize("value", [b"", b"\xc1", b"what is this", pack([]), pack([b"a", 1]), pack({})])
def test_what_is_no_batch_is_one_command_that_every_catalogue_refuses(value: bytes) -> None:
    (command,) = unpack_batch(value)
    catalogue, result = apply_bytes(EMPTY, command)
    assert catalogue.revision == 1
    assert isinstance(result, Denied)
    assert result.reason is Reason.UNREADABLE

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllmd.core.errors import ConfigError
from sllmd.wire.seal import KEYS_MAX, OVERHEAD_BYTES, SEAL_VERSION, Drop, Keyring, Sealer, key_id

KEY, OTHER = bytes(range(32)), bytes(32)


def sealer(*keys: bytes, cluster: str = "one", **options: int) -> Sealer:
    return Sealer(Keyring(list(keys or (KEY,))), cluster, **options)


def test_a_member_opens_what_a_member_sealed() -> None:
    sender, receiver = sealer(), sealer()
    for contents in (b"", b"hello", bytes(1300)):
        box = sender.seal(contents)
        assert len(box) == len(contents) + OVERHEAD_BYTES
        assert receiver.open(box) == contents


def test_nobody_reads_it_in_passing() -> None:
    assert b"secret words" not in sealer().seal(b"secret words")


@pytest.mark.parametrize(
    ("damage", "drop"),
    [
        (lambda box: b"", Drop.SHORT),
        (lambda box: box[: OVERHEAD_BYTES - 1], Drop.SHORT),
        (lambda box: box[: len(box) // 2 + 20], Drop.FORGED),
        (lambda box: box + b"x", Drop.FORGED),
        (lambda box: bytes([SEAL_VERSION - 1]) + box[1:], Drop.OLD_VERSION),
        (lambda box: bytes([SEAL_VERSION + 1]) + box[1:], Drop.NEW_VERSION),
        (lambda box: box[:1] + b"abcd" + box[5:], Drop.OTHER_CLUSTER),
        (lambda box: box[:5] + b"abcd" + box[9:], Drop.UNKNOWN_KEY),
        (lambda box: box[:9] + bytes(16) + box[25:], Drop.FORGED),
        (lambda box: box[:25] + bytes(7) + b"\x09" + box[33:], Drop.FORGED),
        (lambda box: b"GET / HTTP/1.1\r\nHost: localhost:8345\r\n\r\n" + bytes(40), Drop.NEW_VERSION),
    ],
)
def test_what_is_no_box_is_told_apart(damage, drop: Drop) -> None:
    receiver = sealer()
    assert receiver.open(damage(sealer().seal(b"some contents of a box"))) is drop
    assert receiver.lives == 0, "no stranger may take up memory"


@given(st.integers(0, 200), st.integers(1, 255))
def test_every_byte_counts(place: int, change: int) -> None:
    box = bytearray(sealer().seal(b"x" * 60))
    place %= len(box)
    box[place] ^= change
    assert isinstance(sealer().open(bytes(box)), Drop)


@given(st.binary(max_size=200))
def test_garbage_is_dropped(data: bytes) -> None:
    assert isinstance(sealer().open(data), Drop)
    assert isinstance(sealer().open(bytes([SEAL_VERSION]) + data), Drop)


def test_other_keys_and_other_clusters() -> None:
    assert sealer().open(sealer(OTHER).seal(b"x")) is Drop.UNKNOWN_KEY
    assert sealer().open(sealer(cluster="two").seal(b"x")) is Drop.OTHER_CLUSTER


def test_the_cluster_is_authenticated_and_not_only_named() -> None:
    ours, theirs = sealer(), sealer(cluster="two")
    box, named = bytearray(theirs.seal(b"x")), ours.seal(b"x")
    box[1:5] = named[1:5]
    assert ours.open(bytes(box)) is Drop.FORGED


def test_a_box_is_let_in_once() -> None:
    sender, receiver = sealer(), sealer()
    first, second, third = (sender.seal(b"x") for _ in range(3))
    assert receiver.open(second) == b"x"
    assert receiver.open(first) == b"x"
    assert receiver.open(first) is Drop.REPLAYED
    assert receiver.open(second) is Drop.REPLAYED
    assert receiver.open(third) == b"x"


def test_a_sender_that_starts_again_is_another_sender() -> None:
    receiver = sealer()
    for _ in range(3):
        assert receiver.open(sealer().seal(b"x")) == b"x"
    assert receiver.lives == 3


def test_senders_remembered_are_bounded() -> None:
    receiver, first = sealer(lives_max=4), sealer()
    old = first.seal(b"x")
    assert receiver.open(old) == b"x"
    for _ in range(10):
        receiver.open(sealer().seal(b"x"))
    assert receiver.lives == 4
    assert receiver.open(old) == b"x", "what the docstring says of forgotten senders"


def test_rotation_while_everybody_talks() -> None:
    rings = [Keyring([KEY]) for _ in range(3)]
    nodes = [Sealer(ring, "one") for ring in rings]

    def all_understand_all() -> None:
        for sender in nodes:
            for receiver in nodes:
                assert receiver.open(sender.seal(b"x")) == b"x"

    for ring in rings:
        ring.install(OTHER)
        all_understand_all()
    for ring in rings:
        ring.use(key_id(OTHER))
        all_understand_all()
    for ring in rings:
        ring.remove(key_id(KEY))
        all_understand_all()
    assert nodes[0].open(sealer(KEY).seal(b"x")) is Drop.UNKNOWN_KEY
    assert nodes[0].lives == 3, "senders of the removed key are forgotten"


def test_keyring_says_what_is_wrong() -> None:
    ring = Keyring([KEY])
    with pytest.raises(ConfigError, match="needs a key"):
        Keyring([])
    with pytest.raises(ConfigError, match="32 bytes, not 5"):
        ring.install(b"short")
    with pytest.raises(ConfigError, match="in use"):
        ring.remove(key_id(KEY))
    with pytest.raises(ConfigError, match="no key"):
        ring.remove("00000000")
    with pytest.raises(ConfigError, match="install it on every node first"):
        ring.use(key_id(OTHER))
    for _ in range(KEYS_MAX - 1):
        ring.install(Keyring.new_key())
    ring.install(KEY)
    with pytest.raises(ConfigError, match="full"):
        ring.install(Keyring.new_key())


def test_the_key_in_use_stands_first() -> None:
    ring = Keyring([KEY, OTHER])
    assert ring.keys() == [KEY, OTHER]
    ring.use(key_id(OTHER))
    assert ring.keys() == [OTHER, KEY]
    assert ring.ids() == [key_id(OTHER), key_id(KEY)]
    assert ring.primary == key_id(OTHER)

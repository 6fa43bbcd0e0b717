"""Sealed boxes: what members of one cluster say to each other, for nobody else to read, forge or repeat.

::

    version, u8 | cluster, 4 | key id, 4 | life, 16 | number, u64 | AES-256-GCM of the contents, tag last

Each life of a process draws a random ``life``, seals under a key of its own, HMAC-SHA256(cluster key, life),
and counts its boxes: the count is the nonce. So no nonce ever repeats, and a cluster key need not be replaced
after 2^32 packets of all nodes together, as with random nonces (NIST SP 800-38D §8.3). Version and cluster
id are authenticated with the contents.

What protects against what:

* reading and forging by outsiders: the key. A member can forge another member's words: they share it.
* another cluster, another version, another key: told apart by the header, refused without a decryption.
* a repeated box, or one kept back for long: the window of numbers per life (``replay``). Lives are
  remembered for the ``lives_max`` most recently heard senders; a receiver that just started, or has since
  heard so many others, lets an old box in once. What it says is then weighed by incarnations and probe
  numbers: an old claim loses against the newer one, or is refuted by whom it is about.
* a clock that is wrong: no clock is used.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sllmd.core.errors import ConfigError
from sllmd.wire.replay import ReplayWindow

SEAL_VERSION = 1
KEY_BYTES = 32
KEYS_MAX = 8
"""Old, new, and some that nobody removed; each is one more secret to lose."""
WINDOW_BOXES = 1_024
"""How far boxes of one sender may overtake each other. A node sends tens in a second."""
LIVES_MAX = 8_192
"""Senders remembered: more than a large cluster has. About 2 kB each."""

_HEADER = struct.Struct("!B4s4s16sQ")
_TAG_BYTES = 16
OVERHEAD_BYTES = _HEADER.size + _TAG_BYTES
"""What sealing adds."""
_NUMBERS_MAX = 1 << 64


class Drop(StrEnum):
    """Why a box, or the packet that it came in, was not taken."""

    OVERSIZED = "oversized"
    SHORT = "short"
    OLD_VERSION = "old_version"
    NEW_VERSION = "new_version"
    OTHER_CLUSTER = "other_cluster"
    UNKNOWN_KEY = "unknown_key"
    FORGED = "forged"
    REPLAYED = "replayed"
    MALFORMED = "malformed"
    """Sealed by a member, and yet no message."""
    FULL = "full"
    """Nothing wrong with it: more came at once than there is room for."""


def key_id(key: bytes) -> str:
    """Names a key without telling it: hex of the first bytes of its hash."""
    return hashlib.sha256(b"sllmd key id" + key).digest()[:4].hex()


class Keyring:
    """The keys of a cluster: the first seals, any of them opens.

    A key is replaced while everybody keeps talking: ``install`` the new one everywhere, ``use`` it
    everywhere, ``remove`` the old one everywhere. Changes take effect with the next box.
    """

    def __init__(self, keys: list[bytes]) -> None:
        self._keys: dict[str, bytes] = {}
        self.revision = 0
        """Grows with every change."""
        for key in keys:
            self.install(key)
        if not self._keys:
            raise ConfigError("a keyring needs a key", hint="make one with Keyring.new_key()")
        self._primary = key_id(keys[0])

    @staticmethod
    def new_key() -> bytes:
        """A fresh random key."""
        return os.urandom(KEY_BYTES)

    @property
    def primary(self) -> str:
        """The id of the key that seals."""
        return self._primary

    def keys(self) -> list[bytes]:
        """All keys, the one that seals first: what a new member must be given."""
        first = self._keys[self._primary]
        return [first, *(key for name, key in self._keys.items() if name != self._primary)]

    def ids(self) -> list[str]:
        """Ids of all keys, the one that seals first."""
        return [key_id(key) for key in self.keys()]

    def find(self, name: str) -> bytes | None:
        """The key of this id."""
        return self._keys.get(name)

    def install(self, key: bytes) -> str:
        """Open boxes that were sealed with this key, too; its id. ConfigError if it is none."""
        if len(key) != KEY_BYTES:
            raise ConfigError(f"a cluster key has {KEY_BYTES} bytes, not {len(key)}")
        if len(self._keys) >= KEYS_MAX and key_id(key) not in self._keys:
            raise ConfigError(f"the keyring is full: it holds {KEYS_MAX} keys", hint="remove old keys first")
        self._keys[key_id(key)] = key
        self.revision += 1
        return key_id(key)

    def use(self, name: str) -> None:
        """Seal with this key from now on; ConfigError if it is not installed."""
        if name not in self._keys:
            raise ConfigError(f"no key {name} is installed", hint="install it on every node first")
        self._primary = name
        self.revision += 1

    def remove(self, name: str) -> None:
        """Take nothing that is sealed with this key any more; ConfigError for the one in use."""
        if name == self._primary:
            raise ConfigError(f"key {name} is in use", hint="use another key on every node first")
        if self._keys.pop(name, None) is None:
            raise ConfigError(f"no key {name} is installed")
        self.revision += 1


@dataclass(slots=True)
class _Sender:
    """One life of some process, under one key."""

    cipher: AESGCM
    window: ReplayWindow


class Sealer:
    """Seals and opens for one process of one cluster. Not for several threads."""

    def __init__(self, keyring: Keyring, cluster_id: str, *, lives_max: int = LIVES_MAX) -> None:
        self._keyring = keyring
        self._cluster = hashlib.sha256(b"sllmd cluster" + cluster_id.encode()).digest()[:4]
        self._associated = bytes([SEAL_VERSION]) + cluster_id.encode()
        self._life = os.urandom(16)
        self._number = 0
        self._revision = -1
        self._lives_max = lives_max
        self._senders: OrderedDict[bytes, _Sender] = OrderedDict()
        self._cipher: AESGCM
        self._key_tag: bytes

    @property
    def lives(self) -> int:
        """Senders remembered now."""
        return len(self._senders)

    def seal(self, contents: bytes) -> bytes:
        """A box that any member opens, once."""
        if self._revision != self._keyring.revision:
            self._follow_keyring()
        number = self._number
        self._number += 1
        header = _HEADER.pack(SEAL_VERSION, self._cluster, self._key_tag, self._life, number)
        return header + self._cipher.encrypt(_nonce(number), contents, self._associated)

    def open(self, box: bytes) -> bytes | Drop:
        """What is in it, or why it is not taken."""
        if self._revision != self._keyring.revision:
            self._follow_keyring()
        if not box:
            return Drop.SHORT
        if box[0] != SEAL_VERSION:
            return Drop.OLD_VERSION if box[0] < SEAL_VERSION else Drop.NEW_VERSION
        if len(box) < OVERHEAD_BYTES:
            return Drop.SHORT
        _, cluster, key_tag, life, number = _HEADER.unpack_from(box)
        if cluster != self._cluster:
            return Drop.OTHER_CLUSTER
        key = self._keyring.find(key_tag.hex())
        if key is None:
            return Drop.UNKNOWN_KEY
        return self._open(box, key, key_tag + life, number)

    def _open(self, box: bytes, key: bytes, name: bytes, number: int) -> bytes | Drop:
        """Only a box that proves to come from a member may take up memory."""
        sender = self._senders.get(name)
        cipher = _life_cipher(key, name[4:]) if sender is None else sender.cipher
        try:
            contents = cipher.decrypt(_nonce(number), box[_HEADER.size :], self._associated)
        except InvalidTag:
            return Drop.FORGED
        if sender is None:
            sender = self._senders[name] = _Sender(cipher, ReplayWindow(WINDOW_BOXES))
            if len(self._senders) > self._lives_max:
                self._senders.popitem(last=False)
        else:
            self._senders.move_to_end(name)
        return contents if sender.window.admit(number) else Drop.REPLAYED

    def _follow_keyring(self) -> None:
        """A removed key's senders are no longer known, either."""
        primary = self._keyring.keys()[0]
        self._revision = self._keyring.revision
        self._key_tag = bytes.fromhex(key_id(primary))
        self._cipher = _life_cipher(primary, self._life)
        installed = {bytes.fromhex(name) for name in self._keyring.ids()}
        for name in [name for name in self._senders if name[:4] not in installed]:
            del self._senders[name]


def _life_cipher(key: bytes, life: bytes) -> AESGCM:
    return AESGCM(hmac.digest(key, b"sllmd box" + life, "sha256"))


def _nonce(number: int) -> bytes:
    assert number < _NUMBERS_MAX
    return number.to_bytes(12, "big")

"""API keys, of this node's file and of the cluster, and who needs one.

The cluster's are in its catalogue, which every node has: nobody has to be asked for a request. A file is for
one node: ``keys.toml``, read again whenever it changes::

    [[keys]]
    id = "team-a"
    sha256 = "9f86d0…"            # of the secret; or secret = "sk-…" in plain
    scopes = ["inference"]        # and "admin" for /sllmd/v1; default: inference only

Invariants, of what opens and closes the door:

1. Whoever puts a keys file there wants keys to be asked for: from then on one is, until the daemon restarts,
   whatever becomes of the file. (Revoking the cluster's last key by a command opens loopback again.)
2. A file that vanishes, is blank or broken says nothing: the keys that it had stay. One that can be read and
   has no keys says that there are none: nobody gets in by it. Both are logged as errors.
3. What the cluster agreed on may be known here as it was before the last start. Its keys open, as on any node
   that is cut off: one that was revoked meanwhile does until this node hears of it. That there are none is
   believed only once the cluster was heard: until then nobody gets in without a key.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Self, get_args

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sllmd.cluster.catalogue import records
from sllmd.cluster.catalogue.table import Table
from sllmd.core.errors import ConfigError

Scope = Literal["inference", "admin"]

_log = structlog.get_logger(__name__)


class ApiKey(BaseModel):
    """One key; a client presents the secret, logs and metrics show the id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    secret: str | None = Field(default=None, min_length=1)
    scopes: frozenset[Scope] = frozenset({"inference"})

    @model_validator(mode="after")
    def _has_one_secret(self) -> Self:
        if (self.sha256 is None) == (self.secret is None):
            raise ValueError(f"key `{self.id}` needs either sha256 or secret")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the secret, in hex."""
        return self.sha256 or hashlib.sha256((self.secret or "").encode()).hexdigest()


class _KeysFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[ApiKey, ...] = ()


Source = Literal["file", "cluster"]
_NO_KEYS: Table[records.ApiKey] = Table()
_ENDING_HINT = "put it back; to end its keys, write `keys = []` into it"
_OPENING_HINT = "`sllmd keys create` makes a key; without any, restart sllmd without this file"


class KeyRing:
    """The keys of a file that need not exist, and those that the cluster agreed on. See the module."""

    def __init__(
        self, path: Path, agreed: Callable[[], Table[records.ApiKey] | None] = lambda: _NO_KEYS
    ) -> None:
        """``agreed``: the catalogue's keys; None while this node cannot know that there are none."""
        self._path = path
        self._stamp = self._read_stamp()
        self._keys = _read_keys(path) or ()
        self._file_seen = self._stamp is not None
        self._agreed = agreed
        self._agreed_seen: Table[records.ApiKey] | None = None
        self._agreed_keys: tuple[ApiKey, ...] = ()

    def __len__(self) -> int:
        self._refresh()
        return len(self._keys) + len(self._agreed_keys)

    @property
    def complete(self) -> bool:
        """Whether the cluster's keys are known here: not yet where a node began without its cluster."""
        return self._agreed() is not None

    @property
    def wanted(self) -> bool:
        """Whether there are keys, or may be, or somebody wants that there are: nobody gets in without."""
        return len(self) > 0 or self._file_seen or not self.complete

    def all(self) -> list[tuple[Source, ApiKey]]:
        """Every key and where it is from."""
        self._refresh()
        ours: list[tuple[Source, ApiKey]] = [("file", key) for key in self._keys]
        return ours + [("cluster", key) for key in self._agreed_keys]

    def find(self, secret: str) -> ApiKey | None:
        """The key with this secret. Takes the same time whichever key it is and whether it is one."""
        self._refresh()
        presented = hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
        found = None
        for key in (*self._keys, *self._agreed_keys):
            if hmac.compare_digest(key.digest, presented):
                found = key
        return found

    def _refresh(self) -> None:
        agreed = self._agreed()
        if agreed is not self._agreed_seen:
            self._agreed_seen = agreed
            self._agreed_keys = tuple(map(_from_record, agreed.values())) if agreed is not None else ()
        self._refresh_file()

    def _refresh_file(self) -> None:
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._file_seen = True
        try:
            keys = _read_keys(self._path)
        except ConfigError as error:
            _log.error("API keys not read again, the old ones stay", reason=str(error))
            return
        if keys is None:
            what = "the file of API keys is gone or blank, its keys stay"
            _log.error(what, hint=_ENDING_HINT, **self._facts())
            return
        self._keys = keys
        if keys:
            _log.info("API keys read again", **self._facts())
        else:
            what = "the file of API keys has none now: nobody gets in by it"
            _log.error(what, hint=_OPENING_HINT, **self._facts())

    def _facts(self) -> dict[str, str | int]:
        return {"file": str(self._path), "keys": len(self._keys)}

    def _read_stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def _from_record(record: records.ApiKey) -> ApiKey:
    """Scopes of a newer release open nothing here."""
    scopes = frozenset(scope for scope in get_args(Scope) if scope in record.scope.split())
    return ApiKey(id=record.key_id, sha256=record.sha256, scopes=scopes)


def _read_keys(path: Path) -> tuple[ApiKey, ...] | None:
    """None: there is no file, or it is blank. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not text.strip():
        return None
    try:
        keys = _KeysFile.model_validate(tomllib.loads(text)).keys
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError(
            f"{path}: {_fault(error)}", hint="`sllmd` reads `[[keys]]` with id, sha256 or secret, scopes"
        ) from None
    if len({key.id for key in keys}) < len(keys):
        raise ConfigError(f"{path}: two keys have the same id")
    return keys


def _fault(error: ValidationError) -> str:
    """The first thing that is wrong, in the words of the file."""
    first = error.errors(include_url=False, include_input=False)[0]
    match first["loc"]:
        case ("keys", int(index), *rest):
            place = " ".join([f"key {index + 1}:", *(f"`{part}`" for part in rest)])
        case loc:
            place = " ".join(f"`{part}`" for part in loc)
    message = {
        "string_pattern_mismatch": "must be 64 digits of lower-case hex",
        "extra_forbidden": "unknown key",
    }.get(first["type"], first["msg"])
    return f"{place} {message.removeprefix('Value error, ')}"


def presented_secret(headers: Mapping[str, str]) -> str | None:
    """What a client shows: ``Authorization: Bearer …`` or ``x-api-key``."""
    kind, _, secret = headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer" and secret.strip():
        return secret.strip()
    return headers.get("x-api-key") or None


def is_loopback(address: str) -> bool:
    """Whether ``host:port`` or a host can only be reached from this machine."""
    name = host_name(address)
    return name == "localhost" or (is_ip_address(name) and ipaddress.ip_address(name).is_loopback)


def host_name(address: str) -> str:
    """The host of ``host:port``, ``[v6]:port`` or a host alone."""
    host = address.rpartition(":")[0] if address.count(":") == 1 or "]" in address else address
    return host.strip("[]") or address.strip("[]")


def is_ip_address(name: str) -> bool:
    """Whether ``name`` is an address already, which nobody's name server decides on."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

"""The layers a configuration is merged from: each a tree of values that knows where every value stands."""

from __future__ import annotations

import errno
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sllmd.core.errors import ConfigError, PathNotFound

KeyPath = tuple[str, ...]

ENVIRONMENT_PREFIX = "SLLMD_"
FILE_BYTES_MAX = 4 * 1024 * 1024
"""A configuration is written by people; more than this is the wrong file."""

_HEADER = re.compile(r"\s*\[([^\[\]]+)\]\s*(#.*)?$")
_ASSIGNMENT = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_KEY_PART = re.compile(r"""[\w-]+|"[^"]*"|'[^']*'""")
_TOML_LINE = re.compile(r"at line (\d+)")
_REFERENCE = re.compile(r"\$\{(env|file):([^}]*)\}")


@dataclass(frozen=True, slots=True)
class Layer:
    """Values by section, and for each key that was said, where."""

    values: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)


def layer_of(pairs: Sequence[tuple[KeyPath, Any, str]]) -> Layer:
    """A layer from single keys with their values and origins. Raises ConfigError."""
    values: dict[str, Any] = {}
    for path, value, origin in pairs:
        table = values
        for depth, part in enumerate(path[:-1], start=1):
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{origin}: `{'.'.join(path[:depth])}` has a value, and so no keys")
        table[path[-1]] = value
    return Layer(values, {path: origin for path, _, origin in pairs})


def file_layer(path: Path) -> Layer:
    """The layer of one TOML file, references to the environment and to files replaced.

    Raises ConfigError naming file and line, PathNotFound.
    """
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(f"{path} is larger than {FILE_BYTES_MAX} bytes", hint="is it the right file?")
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise PathNotFound(f"{path} is not there", hint="name a file that is") from None
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        line = _TOML_LINE.search(str(error))
        raise ConfigError(
            f"{path}:{line[1]}: not valid TOML: {error}" if line else f"{path}: not valid TOML: {error}"
        ) from None
    origins = {key: f"{path}:{line}" for key, line in key_lines(text).items()}
    for leaf in _leaves(values):
        origins.setdefault(leaf, nearest(origins, leaf) or str(path))
    return Layer(_resolve(values, (), path, origins), origins)


def environment_layer(environ: Mapping[str, str], sequences: frozenset[KeyPath]) -> Layer:
    """The layer of ``SLLMD_SECTION__KEY=value``; lists and tables in TOML, or, for lists, with commas."""
    pairs = []
    for name, text in sorted(environ.items()):
        if name.startswith(ENVIRONMENT_PREFIX) and "__" in name:
            path = tuple(name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"))
            pairs.append((path, parse_value(text, path, sequences, name), f"environment {name}"))
    return layer_of(pairs)


def parse_value(text: str, path: KeyPath, sequences: frozenset[KeyPath], origin: str) -> Any:
    """What ``text`` says outside of a file: a TOML list or table, items with commas, or plain text."""
    if text.lstrip().startswith(("[", "{")):
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{origin}: not a TOML list or table: {error}") from None
    if path in sequences:
        return [item.strip() for item in text.split(",") if item.strip()]
    return text


def merge(layers: Sequence[Layer]) -> Layer:
    """All layers in one; later ones win key by key, lists are replaced whole."""
    values: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    for layer in layers:
        _merge_into(values, layer.values)
        origins.update(layer.origins)
    return Layer(values, origins)


def nearest(origins: Mapping[KeyPath, str], path: KeyPath) -> str | None:
    """The origin of ``path``, of the closest table around it, or of the first key inside it."""
    for length in range(len(path), 0, -1):
        if path[:length] in origins:
            return origins[path[:length]]
    return next((origin for key, origin in origins.items() if key[: len(path)] == path), None)


def key_lines(text: str) -> dict[KeyPath, int]:
    """Line of each table header and key of a TOML text, counted from 1."""
    table: KeyPath = ()
    lines: dict[KeyPath, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _key(header[1])
            lines.setdefault(table, number)
        elif assignment := _ASSIGNMENT.match(line):
            lines.setdefault(table + _key(assignment[1]), number)
    return lines


def _key(text: str) -> KeyPath:
    return tuple(part.strip("\"'") for part in _KEY_PART.findall(text))


def _leaves(values: Mapping[str, Any], prefix: KeyPath = ()) -> list[KeyPath]:
    leaves: list[KeyPath] = []
    for key, value in values.items():
        path = (*prefix, key)
        leaves += _leaves(value, path) if isinstance(value, dict) else [path]
    return leaves


def _merge_into(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge_into(target[key], value)
        else:
            target[key] = _copy(value)


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value


def _resolve(value: Any, path: KeyPath, file: Path, origins: Mapping[KeyPath, str]) -> Any:
    """``value`` with ``${env:NAME}`` and ``${file:/path}`` replaced in every text."""
    if isinstance(value, dict):
        return {key: _resolve(item, (*path, key), file, origins) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, path, file, origins) for item in value]
    if isinstance(value, str):
        where = origins.get(path, str(file))
        return _REFERENCE.sub(lambda match: _referenced(match[1], match[2], where), value)
    return value


def _referenced(kind: str, name: str, where: str) -> str:
    if kind == "env":
        if name not in os.environ:
            raise ConfigError(f"{where}: the environment has no `{name}`", hint=f"export {name}=... first")
        return os.environ[name]
    try:
        return Path(name).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{where}: cannot read {name}: {error.strerror}") from None

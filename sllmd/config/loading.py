"""Builds a ``Config`` from defaults, files, environment and flags, and says what is wrong in words."""

from __future__ import annotations

import difflib
import os
import re
import socket
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sllmd.config import paths
from sllmd.config.checks import check
from sllmd.config.layers import (
    ENVIRONMENT_PREFIX,
    KeyPath,
    Layer,
    environment_layer,
    file_layer,
    layer_of,
    merge,
    nearest,
    parse_value,
)
from sllmd.config.settings import Config
from sllmd.core.errors import ConfigError

FILE_VARIABLE = "SLLMD_CONFIG"
"""Names the file for every command; a command that takes a file as an argument prefers that."""
VARIABLES = (FILE_VARIABLE, "SLLMD_ADDR", "SLLMD_API_KEY", "SLLMD_TOKEN")
"""What the environment may say besides SLLMD_SECTION__KEY."""
_VARIABLES_OF_TOOLS = (
    "SLLMD_BENCH_CACHE",
    "SLLMD_DEMO_MODEL",
    "SLLMD_QUICKSTART_PROMPT",
    "SLLMD_SIMULATION_SEED",
    "SLLMD_STORM_SECONDS",
)
"""Of this project's scripts, tests and benchmarks, which run daemons."""
_OF_SERVICES = re.compile(
    r"SLLMD_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?=|PORT=(tcp|udp|sctp)://|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=).*"
)
"""What Kubernetes tells each container of services whose names begin with sllmd, whoever asked for it."""

DEV_VALUES: tuple[tuple[KeyPath, Any], ...] = (
    (("api", "listen"), ["127.0.0.1:8343"]),
    (("devices", "backend"), "cpu"),
    (("loader", "dram_budget"), "1GiB"),
    (("serving", "keep_alive"), "30s"),
    (("serving", "residency_min"), 0.0),
    (("serving", "drain_timeout"), "5s"),
    (("models", "tiny", "source"), "builtin:tiny"),
)
"""What ``--dev`` changes among the defaults: a laptop, one person, a model that needs no download."""


_WORDS = {
    **dict.fromkeys(("tuple_type", "list_type", "frozen_set_type"), 'should be a list: ["a", "b"]'),
    **dict.fromkeys(("model_type", "dict_type"), "should be a table: [section] or { key = value }"),
    **dict.fromkeys(("byte_size", "byte_size_unit"), 'is not a size (write for example "512MiB")'),
    "path_type": "should be the text of a path",
    "string_type": "should be a text, in quotes",
}
"""What pydantic says in the words of Python, in those of TOML."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and for each key that somebody set, where."""

    config: Config
    origins: Mapping[KeyPath, str]
    file: Path | None = None
    """The file that was read, beside those in ``conf.d``."""

    def origin(self, path: KeyPath) -> str:
        """Where the value of ``path`` comes from: a file and line, a variable, a flag, ``default``."""
        return self.origins.get(path, "default")

    def is_set(self, path: KeyPath) -> bool:
        """Whether somebody set ``path``."""
        return path in self.origins


def load_config(
    config_file: Path | None = None,
    *,
    flags: Sequence[tuple[KeyPath, Any, str]] = (),
    dev: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Loaded:
    """The configuration that ``sllmd start`` would run with.

    ``flags`` are (path, value, name of the flag). With ``dev`` no file is read unless it is named, by
    ``config_file`` or by SLLMD_CONFIG.
    Raises PathNotFound, or ConfigError; one message names every key that is wrong, where it stands and what
    was meant.
    """
    environ = os.environ if environ is None else environ
    named = config_file or (Path(environ[FILE_VARIABLE]) if environ.get(FILE_VARIABLE) else None)
    file = named or (None if dev else paths.default_config_file())
    layers = [machine_defaults(dev=dev)]
    if dev:
        layers.append(layer_of([(path, value, "--dev") for path, value in DEV_VALUES]))
    if file is not None:
        layers += [file_layer(path) for path in (file, *sorted((file.parent / "conf.d").glob("*.toml")))]
    sequences = frozenset(sequence_keys(Config))
    refuse_unknown_variables(environ)
    layers.append(environment_layer(environ, sequences))
    layers.append(layer_of([_flag(path, value, name, sequences) for path, value, name in flags]))
    merged = merge(layers)
    try:
        config = Config.model_validate(merged.values)
    except ValidationError as error:
        raise ConfigError(_describe(error, merged), hint="`sllmd config schema` lists every key") from None
    check(config)
    return Loaded(config, merged.origins, file)


def machine_defaults(*, dev: bool = False) -> Layer:
    """Defaults that depend on the machine and on who runs the daemon."""
    return Layer(
        {
            "node": {"name": socket.gethostname(), "data_dir": paths.data_directory(dev=dev)},
            "api": {
                "uds": str(paths.socket_file()),
                "keys_file": str(paths.configuration_directory() / "keys.toml"),
            },
        }
    )


def sequence_keys(model: type[BaseModel], prefix: KeyPath = ()) -> list[KeyPath]:
    """Paths of all keys that hold lists."""
    found: list[KeyPath] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += sequence_keys(field.annotation, (*prefix, name))
        elif {tuple, list, frozenset} & _kinds(field.annotation):
            found.append((*prefix, name))
    return found


def _kinds(annotation: Any) -> set[Any]:
    """What a field may hold: ``tuple[int, ...] | None`` is a tuple or nothing."""
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        return set().union(*(_kinds(part) for part in typing.get_args(annotation)))
    return {origin or annotation}


def section_at(path: KeyPath) -> type[BaseModel] | None:
    """The settings class that holds the keys under ``path``."""
    section: type[BaseModel] = Config
    parts = list(path)
    while parts:
        field = section.model_fields.get(parts.pop(0))
        if field is None:
            return None
        kind: Any = field.annotation
        if typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
            if not parts:
                return None
            parts.pop(0)
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return None
        section = kind
    return section


def _flag(path: KeyPath, value: Any, name: str, sequences: frozenset[KeyPath]) -> tuple[KeyPath, Any, str]:
    return path, parse_value(value, path, sequences, name) if isinstance(value, str) else value, name


def refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    """Raise ConfigError for ``SLLMD_ADRR`` or ``SLLMD_DATA_DIR``: they would do nothing, and nobody would
    notice."""
    for name in sorted(environ):
        key = name.removeprefix(ENVIRONMENT_PREFIX)
        if key == name or "__" in key or name in VARIABLES or name in _VARIABLES_OF_TOOLS:
            continue
        if _OF_SERVICES.fullmatch(f"{name}={environ[name]}"):
            continue
        section = next((section for section in Config.model_fields if _holds(section, key.lower())), None)
        if section is not None:
            meant = f"{ENVIRONMENT_PREFIX}{section.upper()}__{key}"
            raise ConfigError(f"environment {name} names no section; did you mean {meant}?")
        close = difflib.get_close_matches(name, VARIABLES, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"environment {name} is no variable of sllmd's{meant}",
            hint=f"there are {', '.join(VARIABLES)}, and SLLMD_SECTION__KEY for every configured key",
        )


def _describe(error: ValidationError, merged: Layer) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        path = tuple(str(part) for part in problem["loc"])
        where = nearest(merged.origins, path)
        what = (
            _unknown_key(path)
            if problem["type"] == "extra_forbidden"
            else _bad_value(_said(path, merged), problem["type"], problem["msg"])
        )
        lines.append(f"{where}: {what}" if where else what)
    return "\n".join(lines)


def _said(path: KeyPath, merged: Layer) -> KeyPath:
    """The key that somebody wrote: pydantic adds items of lists and kinds that a value may have."""
    lengths = range(len(path), 0, -1)
    return next((path[:length] for length in lengths if path[:length] in merged.origins), path)


def _bad_value(path: KeyPath, kind: str, message: str) -> str:
    message = _WORDS.get(kind, message)
    lowered = message[:1].lower() + message[1:]
    return f"`{'.'.join(path)}`: {lowered.removeprefix('value error, ')}"


def _unknown_key(path: KeyPath) -> str:
    section = section_at(path[:-1]) or Config
    close = difflib.get_close_matches(path[-1], list(section.model_fields), n=1)
    if close:
        return f"unknown key `{'.'.join(path)}`; did you mean `{'.'.join((*path[:-1], close[0]))}`?"
    elsewhere = [name for name in Config.model_fields if _holds(name, path[-1])]
    if elsewhere:
        return f"unknown key `{'.'.join(path)}`; did you mean `{elsewhere[0]}.{path[-1]}`?"
    return f"unknown key `{'.'.join(path)}`"


def _holds(section_name: str, key: str) -> bool:
    section = section_at((section_name,))
    return section is not None and key in section.model_fields

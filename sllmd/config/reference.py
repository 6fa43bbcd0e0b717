"""Configuration as TOML for people: the commented reference of all defaults, and what is in force.

``config/sllmd.toml`` is what ``reference()`` returns; the comments are the docstrings beside the fields.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
import typing
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from sllmd.api.settings import ApiSettings
from sllmd.config.layers import KeyPath
from sllmd.config.loading import Loaded, machine_defaults
from sllmd.config.paths import SYSTEM_RUNTIME_DIRECTORY
from sllmd.config.settings import Config
from sllmd.core.units import parse_duration_seconds
from sllmd.roles.settings import ModelSettings

_COLUMNS = 100
_HEAD = """\
sllmd's configuration: every key with its default. Save it as /etc/sllmd/sllmd.toml, or as
~/.config/sllmd/sllmd.toml for a daemon of one's own, and change what must be different.

A flag beats the environment (SLLMD_SECTION__KEY=value), which beats conf.d/*.toml beside this file in
name order, which beat this file. An unknown key is an error. Durations are "90s", "5m", "1h30m" or
seconds, -1 is for ever; sizes are "16MiB". ${env:NAME} and ${file:/path} in a text are replaced.
`sllmd config check` tries a file, `sllmd config show --origin` tells where each value comes from."""
_EXAMPLE_NAME = "qwen3-8b"
_EXAMPLE = ModelSettings(
    source="/srv/models/Qwen3-8B",
    aliases=("gpt-4o-mini",),
    keep_alive=1800.0,
    preload="dram",
    batch_max=16,
    context_tokens_max=8192,
    threads=4,
    dtype="bfloat16",
)


def reference() -> str:
    """The commented file of all keys at their defaults; what differs by machine is commented out."""
    blocks = [_comment(_HEAD)]
    machine = machine_defaults().values
    system = Config(api=ApiSettings(uds=SYSTEM_RUNTIME_DIRECTORY / "sllmd.sock"))
    for path, section in _sections(system):
        unset = set(machine.get(path[0], {})) if len(path) == 1 else set()
        blocks.append(_commented_section(path, section, unset))
    example = _commented_section(("models", _EXAMPLE_NAME), _EXAMPLE, set(ModelSettings.model_fields))
    blocks.append(example.replace("\n[models", "\n# [models"))
    return "\n\n".join(blocks) + "\n"


def effective(loaded: Loaded, *, origin: bool = False) -> str:
    """The configuration in force; with ``origin`` each line says where its value comes from."""
    blocks = []
    for path, section in _sections(loaded.config):
        lines = [f"[{_dotted(path)}]"]
        for name, field in _plain_fields(section):
            value = getattr(section, name)
            line = f"# {name} is not set" if value is None else f"{_bare(name)} = {_toml(value, field)}"
            lines.append(f"{line:<48}  # {loaded.origin((*path, name))}" if origin else line)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors."""
    return Config.model_json_schema(schema_generator=_Schema)


class _Schema(GenerateJsonSchema):
    """Says of durations that they may be text, which the validator in front of them takes."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        plain = super().function_before_schema(schema)
        if schema["function"]["function"] is not parse_duration_seconds:
            return plain
        return {"anyOf": [plain, {"type": "string", "examples": ["90s", "5m", "1h30m"]}]}


def _sections(config: BaseModel, path: KeyPath = ()) -> Iterator[tuple[KeyPath, BaseModel]]:
    """Every table with keys of its own, nested ones behind the table they belong to."""
    if path:
        yield path, config
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from _sections(value, (*path, name))
        elif isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, BaseModel):
                    yield from _sections(item, (*path, name, key))


def _plain_fields(section: BaseModel) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in type(section).model_fields.items():
        if not isinstance(getattr(section, name), BaseModel):
            yield name, field


def _commented_section(path: KeyPath, section: BaseModel, unset: set[str]) -> str:
    notes = _docstrings(type(section))
    about = re.sub(r"^\[[^\]]+\]: ", "", _plain(inspect.getdoc(type(section)) or "").split("\n\n")[0])
    lines = [_comment(about[:1].upper() + about[1:]), f"[{_dotted(path)}]"]
    for name, field in _plain_fields(section):
        if name in notes:
            lines.append(_comment(_plain(notes[name])))
        value = getattr(section, name)
        text = f"{_bare(name)} =" if value is None else f"{_bare(name)} = {_toml(value, field)}"
        lines.append(f"# {text}" if value is None or name in unset else text)
    return "\n".join(lines)


def _comment(text: str) -> str:
    wrapped = (textwrap.wrap(" ".join(part.split()), _COLUMNS) for part in text.split("\n\n"))
    return "\n#\n".join("\n".join(f"# {line}" for line in lines) for lines in wrapped)


def _plain(docstring: str) -> str:
    return docstring.replace("``", "`").replace("`[", "[").replace("]`", "]")


@cache
def _docstrings(section: type[BaseModel]) -> dict[str, str]:
    """The texts written under the fields of ``section``, inherited ones included."""
    notes: dict[str, str] = {}
    for owner in reversed(section.__mro__):
        if not (issubclass(owner, BaseModel) and owner.__module__.startswith("sllmd.")):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(tree, ast.ClassDef)
        for field, note in zip(tree.body, tree.body[1:], strict=False):
            match field, note:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    notes[name] = inspect.cleandoc(text)
    return notes


def _dotted(path: KeyPath) -> str:
    return ".".join(_bare(part) for part in path)


def _bare(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key)


def _toml(value: Any, field: FieldInfo) -> str:
    """``value`` as TOML, sizes and durations as people write them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and (isinstance(value, ByteSize) or _mentions(field.annotation, ByteSize)):
        return json.dumps(_size_text(value))
    if isinstance(value, float):
        return _duration_text(value) if _is_duration(field) else repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item, field) for item in value)}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_bare(key)} = {_toml(item, field)}" for key, item in value.items()) + " }"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def _mentions(annotation: Any, wanted: type) -> bool:
    return annotation is wanted or any(_mentions(part, wanted) for part in typing.get_args(annotation))


def _is_duration(field: FieldInfo) -> bool:
    return parse_duration_seconds in _validators(field.metadata, field.annotation)


def _validators(metadata: list[Any], annotation: Any) -> set[Callable[..., Any]]:
    found = {item.func for item in metadata if hasattr(item, "func")}
    for part in typing.get_args(annotation):
        found |= _validators(list(getattr(part, "__metadata__", ())), part)
    return found


def _size_text(count: int) -> str:
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count and count % size == 0:
            return f"{count // size}{unit}"
    return f"{count}B"


def _duration_text(seconds: float) -> str:
    if seconds == float("inf"):
        return "-1"
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f'"{int(seconds // size)}{unit}"'
    milliseconds = round(seconds * 1000, 6)
    if seconds % 1 == 0 or milliseconds % 1:
        return f'"{seconds:g}s"'
    return f'"{milliseconds:g}ms"' if seconds < 1 else f'"{seconds:g}s"'

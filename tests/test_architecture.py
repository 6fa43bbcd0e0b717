"""The map in ``sllmd/__init__.py`` is true: floors, door plates, purity, what the daemon never imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

import sllmd

PACKAGE = Path(sllmd.__file__).parent
INTRODUCERS = {"daemon"}
"""May know rooms that do not know each other; so may ``roles``, which stands above them anyway."""

IMPURE_MODULES = {
    "aiofiles", "aiohttp", "asyncio", "ctypes", "fcntl", "http", "io", "logging", "mmap", "multiprocessing",
    "os", "pynvml", "random", "secrets", "select", "shutil", "socket", "ssl", "structlog",
    "subprocess", "tempfile", "threading", "time", "torch", "transformers", "urllib.request", "uuid",
    "uvloop",
}  # fmt: skip
"""Clocks, chance, sockets, files, processes, devices, and what suspends."""


@dataclass(frozen=True)
class Module:
    name: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def room(self) -> str:
        return self.name.split(".")[1] if "." in self.name else ""

    @cached_property
    def docstring(self) -> str:
        """As written: every run collects by it, and to parse all files takes a second."""
        found = re.match(r'"""(.+?)"""', self.source, re.DOTALL)
        return found[1] if found else ""

    @property
    def pure(self) -> bool:
        return self.room == "core" or re.search(r"\bPure[.:]", self.docstring) is not None

    def imports(self) -> set[str]:
        """Every module imported anywhere in the file; ``from a import b`` as ``a.b``, too, if that is one."""
        found: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}: relative import"
                assert node.module is not None
                found.add(node.module)
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
        return found


@cache
def modules() -> dict[str, Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["sllmd", *path.relative_to(PACKAGE).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, path.read_text(encoding="utf-8"))
    return found


@cache
def floors() -> dict[str, int]:
    """Floor of each room, read off the map."""
    rows = re.findall(r"^(\d)\s+((?:``\w+``(?:, )?)+)", sllmd.__doc__ or "", re.MULTILINE)
    return {room: int(floor) for floor, rooms in rows for room in re.findall(r"``(\w+)``", rooms)}


def test_the_map_names_every_room_and_no_other() -> None:
    rooms = {module.room for module in modules().values()} - {""}
    assert rooms == set(floors())


@pytest.mark.parametrize("room", sorted(floors()))
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    wrong = [
        f"{module.name} imports {imported}"
        for module in modules().values()
        if module.room == room
        for imported in sorted(module.imports())
        if imported in modules() and not _may_import(room, modules()[imported].room)
    ]
    assert wrong == []


def _may_import(room: str, other: str) -> bool:
    return other in ("", room) or floors()[other] < floors()[room] or {room, other} == {"cli", "__main__"}


@pytest.mark.parametrize("room", sorted({name for name in floors() if (PACKAGE / name).is_dir()}))
def test_every_room_has_a_door_plate(room: str) -> None:
    plate = modules()[f"sllmd.{room}"].docstring
    for word in ("Owns:", "Start at", "nows nothing of"):
        assert word in plate, f"sllmd/{room}/__init__.py does not say `{word}`"


def test_every_file_says_what_it_is() -> None:
    assert [name for name, module in modules().items() if not module.docstring] == []


def pure_modules() -> list[str]:
    return [name for name, module in modules().items() if module.pure]


@pytest.mark.parametrize(
    ("room", "known"), [("scheduler", set()), ("migration", {"sllmd.engine", "sllmd.engine.protocol"})]
)
def test_a_room_of_decisions_is_pure_and_knows_only_words(room: str, known: set[str]) -> None:
    own = [module for module in modules().values() if module.room == room]
    assert [module.name for module in own if not module.pure] == []
    names = {name for module in own for name in module.imports() if name in modules()} - known
    assert {modules()[name].room for name in names} <= {"", "core", room}


def test_decisions_are_pure() -> None:
    """The files where things are decided say that they are pure, so that the test below looks at them."""
    deciding = {"sllmd.roles.admission", "sllmd.engine.protocol", "sllmd.engine.batch", "sllmd.loader.plan"}
    assert deciding <= set(pure_modules())


@pytest.mark.parametrize("name", pure_modules())
def test_a_pure_file_stays_pure(name: str) -> None:
    module = modules()[name]
    imports = module.imports()
    assert {other for other in imports if {other, other.split(".")[0]} & IMPURE_MODULES} == set()
    assert {other for other in imports if _is_impure_file(other)} == set()
    assert [ast.unparse(node) for node in ast.walk(module.tree) if _does_something(node)] == []


def _is_impure_file(name: str) -> bool:
    """Whether ``name`` is a file of ours that is not pure; a room's door plate holds no code."""
    module = modules().get(name)
    is_door_plate = (PACKAGE.parent / Path(*name.split("."))).is_dir()
    return (
        module is not None
        and not module.pure
        and not is_door_plate
        and "Pure but for" not in module.docstring
    )


def _does_something(node: ast.AST) -> bool:
    """Whether ``node`` suspends, or opens, prints or reads something."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in ("open", "print", "input")
    return isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith)


def test_no_file_is_an_attic() -> None:
    attics = {"utils", "util", "helpers", "misc", "common"}
    assert [name for name in modules() if name.split(".")[-1] in attics] == []


def _imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return set(result.stdout.split())


def test_the_daemon_imports_no_model_code() -> None:
    imported = _imported_by("import sllmd.daemon")
    assert "aiohttp" in imported
    assert imported & {"torch", "transformers", "numpy", "safetensors", "gguf"} == set()


def test_commands_import_neither_the_daemon_nor_model_code() -> None:
    commands = ("app", "serving", "run", "configure", "models")
    imported = _imported_by(f"import {', '.join(f'sllmd.cli.{name}' for name in commands)}")
    assert imported & {"torch", "transformers", "aiohttp", "uvloop", "tokenizers"} == set()


def test_the_version_imports_nothing() -> None:
    imported = _imported_by("sys.argv[1:] = ['--version']; import sllmd.__main__; sllmd.__main__.main()")
    assert imported & {"typer", "rich", "pydantic"} == set()

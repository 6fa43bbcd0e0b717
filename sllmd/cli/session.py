"""What every command shares: where the daemon is, how results are shown, which errors exit how."""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, NoReturn

import typer

from sllmd.cli.client import Client, parse_address
from sllmd.cli.exits import INTERRUPTED, exit_code
from sllmd.cli.place import configured_address, local_sockets
from sllmd.cli.tables import Column, as_json, fields, table
from sllmd.config.loading import Loaded, load_config, refuse_unknown_variables
from sllmd.core.errors import ConfigError, InvalidApiKey, InvalidRequest, SllmdError
from sllmd.core.units import parse_duration_seconds


class OutputFormat(StrEnum):
    """How results are printed."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    JSONL = "jsonl"


@dataclass(frozen=True, slots=True)
class SharedOptions:
    """The options that every command takes."""

    addr: str | None = None
    api_key: str | None = None
    output: OutputFormat | None = None
    quiet: bool = False
    color: bool = True


class Session:
    """One run of the command line."""

    def __init__(self, options: SharedOptions) -> None:
        self.options = options

    @property
    def output(self) -> OutputFormat:
        """The chosen format."""
        return self.options.output or OutputFormat.TABLE

    @property
    def for_people(self) -> bool:
        """Whether results are tables and sentences, not JSON."""
        return self.output in (OutputFormat.TABLE, OutputFormat.WIDE)

    @functools.cached_property
    def client(self) -> Client:
        """The daemon named by ``--addr`` or SLLMD_ADDR, else the configured one. Raises ConfigError."""
        refuse_unknown_variables(os.environ)
        addr = self.options.addr
        address = parse_address(addr) if addr else configured_address(self.loaded)
        return Client(address, api_key=self.options.api_key)

    @functools.cached_property
    def asked_node(self) -> str:
        """The name of the node that is asked."""
        return str(self.client.get("/sllmd/v1/status")["node"])

    @functools.cached_property
    def loaded(self) -> Loaded:
        """The configuration, as a daemon would read it here and now. Raises ConfigError."""
        return load_config()

    def show_rows(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, empty: str) -> None:
        """Print a list: a table, one JSON array, or one JSON object a line."""
        if not self.for_people:
            print(as_json(list(rows), lines=self.output is OutputFormat.JSONL), end="")
        elif rows:
            print(self.table(rows, columns), end="")
        else:
            self.note(empty)

    def table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
        """Rows for people: as wide as the terminal; in a pipe, or with ``-o wide``, with nothing cut."""
        wide = self.output is OutputFormat.WIDE
        return table(rows, columns, wide=wide, bold_head=self._bold(sys.stdout), width=self._width)

    def fields(self, pairs: Sequence[tuple[str, str]]) -> str:
        """Names and values of one thing, as wide as a table."""
        return fields(pairs, width=self._width)

    @property
    def _width(self) -> int | None:
        cut = self.output is not OutputFormat.WIDE and sys.stdout.isatty()
        return shutil.get_terminal_size().columns if cut else None

    def show_object(self, value: Mapping[str, Any], text: str) -> None:
        """Print one thing: ``text`` for people, ``value`` for programs."""
        if self.for_people:
            print(text)
        else:
            print(as_json(value, lines=self.output is OutputFormat.JSONL), end="")

    def note(self, text: str) -> None:
        """Tell a person something that is not a result."""
        if not self.options.quiet:
            print(text, file=sys.stderr)

    @property
    def shows_progress(self) -> bool:
        """Whether a bar may be drawn."""
        return sys.stderr.isatty() and not self.options.quiet

    def fail(self, error: SllmdError) -> NoReturn:
        """Say what went wrong and what to do, and exit accordingly."""
        bold, plain = ("\033[1;31m", "\033[0m") if self._bold(sys.stderr) else ("", "")
        print(f"{bold}sllmd: {error.message}{plain}", file=sys.stderr)
        hint = error.hint
        if isinstance(error, InvalidApiKey) and hint and self.client.address.socket_path is None:
            hint += keyless_hint()
        if hint:
            print(f"  {hint}", file=sys.stderr)
        raise typer.Exit(exit_code(error))

    @property
    def color(self) -> bool:
        """Whether a terminal may be given more than plain text: see https://no-color.org."""
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return self.options.color and not plain

    def _bold(self, stream: Any) -> bool:
        return self.color and bool(stream.isatty())


def keyless_hint() -> str:
    """How to ask a node on this machine without a key; nothing where none is known."""
    ways = " or ".join(f"--addr unix:{path}" for path in local_sockets())
    return f"; a node on this machine needs none with {ways}" if ways else ""


def duration_option(option: str, text: str) -> float:
    """The seconds that ``option`` was given as ``text``. Raises InvalidRequest."""
    try:
        return parse_duration_seconds(text)
    except ConfigError as error:
        raise InvalidRequest(f"{option}: {error.message}", hint=error.hint) from None


NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="A node's name or id.")]
AnyNodeArgument = Annotated[
    str | None, typer.Argument(metavar="NODE", help="A node's name or id; without it, the one that is asked.")
]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A model's name or alias.")]
OutputOption = Annotated[
    OutputFormat | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FORMAT",
        help="How results are printed: table, wide, json or jsonl.",
        show_default="table",
    ),
]
AddrOption = Annotated[
    str | None,
    typer.Option(envvar="SLLMD_ADDR", help="The daemon: unix:/path, host:port or http://host:port."),
]
KeyOption = Annotated[str | None, typer.Option(envvar="SLLMD_API_KEY", help="Key for the daemon.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Results and errors only.")]
NoColorOption = Annotated[bool, typer.Option("--no-color", help="No colours; NO_COLOR does the same.")]

_SHARED: dict[str, Any] = {
    "output": OutputOption,
    "addr": AddrOption,
    "api_key": KeyOption,
    "quiet": QuietOption,
    "no_color": NoColorOption,
}


_FROM_ENVIRONMENT = ("addr", "api_key")


def command(
    app: typer.Typer, name: str, *, epilog: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command: its first parameter is the Session, the shared options are added.

    ``epilog``: what ``--help`` ends with. A SllmdError that leaves the function becomes a message, a hint and
    an exit code.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(ctx: typer.Context, **arguments: Any) -> None:
            before = ctx.find_object(Session)
            options = before.options if before else SharedOptions()
            given = {key: arguments.pop(key) for key in _SHARED}
            for key in _FROM_ENVIRONMENT:  # which comes after a flag, before or behind the command's name
                source = ctx.get_parameter_source(key)
                if getattr(options, key) and source is not None and source.name == "ENVIRONMENT":
                    given[key] = None
            session = Session(given_options(options, **given))
            try:
                function(session, **arguments)
                sys.stdout.flush()
            except BrokenPipeError:  # `| head` has seen enough; so that Python does not try again at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            except SllmdError as error:
                session.fail(error)
            except KeyboardInterrupt:
                raise typer.Exit(INTERRUPTED) from None

        run.__signature__ = _signature(function)  # type: ignore[attr-defined]
        app.command(name, epilog=epilog)(run)
        return function

    return register


def given_options(
    before: SharedOptions,
    *,
    output: OutputFormat | None,
    addr: str | None,
    api_key: str | None,
    quiet: bool,
    no_color: bool,
) -> SharedOptions:
    """``before`` with what was given since."""
    return SharedOptions(
        addr=before.addr if addr is None else addr,
        api_key=before.api_key if api_key is None else api_key,
        output=before.output if output is None else output,
        quiet=before.quiet or quiet,
        color=before.color and not no_color,
    )


def _signature(function: Callable[..., None]) -> inspect.Signature:
    """``function``'s parameters without the session, with typer's context and the shared options."""
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    shared = [
        inspect.Parameter(
            key, keyword, default=False if key in ("quiet", "no_color") else None, annotation=kind
        )
        for key, kind in _SHARED.items()
    ]
    return inspect.Signature([context, *(parameter.replace(kind=keyword) for parameter in own), *shared])

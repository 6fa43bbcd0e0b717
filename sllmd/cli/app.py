"""The tree of commands. A command's module is imported when the command runs, not before."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sllmd import __version__
from sllmd.cli.exits import exits_text
from sllmd.cli.logs import configure_command_logs
from sllmd.cli.session import (
    AddrOption,
    KeyOption,
    NoColorOption,
    OutputOption,
    QuietOption,
    Session,
    SharedOptions,
    given_options,
)

_COMMANDS: dict[str, tuple[str, str]] = {
    "start": ("start", "Run the daemon in the foreground."),
    "run": ("run", "Ask a model something, or talk with it."),
    "ps": ("serving", "Show the replicas that are loaded or on their way."),
    "load": ("serving", "Load a model before anybody asks for it."),
    "unload": ("serving", "Take a model out of memory."),
    "cache": ("serving", "Show the DRAM tier, or evict a model from it."),
    "status": ("serving", "Show the node and its cluster: who leads, what is wrong, devices, memory."),
    "members": ("cluster", "Show the nodes of the cluster: who lives, who leads."),
    "node": ("cluster", "List nodes, or remove one that is dead."),
    "drain": ("draining", "Empty a node: what runs there moves to others."),
    "undrain": ("draining", "Let a drained node take work again."),
    "leave": ("cluster", "Let a node leave the cluster for good."),
    "keys": ("keys", "Make, list and revoke API keys."),
    "events": ("follow", "Follow what happens in the cluster."),
    "monitor": ("follow", "Follow the log of a node."),
    "migrate": ("moving", "Move a running request, or all of a model, to another node."),
    "plan": ("plan", "Show where a model would start soonest, and why not elsewhere."),
    "explain": ("serving", "Show where a request's time went."),
    "simulate": ("simulate", "Try placement policies on a virtual cluster."),
    "import": ("importing", "Bring a model into the store."),
    "list": ("models", "List the models that are served, or in the store."),
    "show": ("models", "Show everything about one model."),
    "rm": ("models", "Remove a model from the store."),
    "verify": ("models", "Check a model's bytes against its checksums."),
    "alias": ("models", "Give a model another name."),
    "recover": ("recover", "Go on alone when most voters are lost for good."),
    "token": ("joining", "Make, list and revoke join tokens."),
    "keyring": ("joining", "Show and replace the keys of gossip."),
    "config": ("configure", "Check and show the configuration."),
    "version": ("configure", "Show the version."),
}


class _LazyGroup(TyperGroup):
    """Lists every command from the table above, and imports only the one that runs."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - typer's signature
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - typer's signature
        if cmd_name not in _COMMANDS:
            return None
        return TyperCommand(cmd_name, help=_COMMANDS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in _COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            meant = f" Did you mean '{close[0]}'?" if close else ""
            ctx.fail(f"No such command '{args[0]}'.{meant}")
        name, stub, rest = super().resolve_command(ctx, args)
        if name is None or stub is None:
            return name, stub, rest
        module = importlib.import_module(f"sllmd.cli.{_COMMANDS[name][0]}")
        return name, typer.main.get_group(module.app).commands[name], rest


app = typer.Typer(
    cls=_LazyGroup,
    help="Serve many language models from few machines.",
    epilog=f"\b\nThe exit code says how it went:\n{exits_text()}",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


@app.callback()
def root(
    ctx: typer.Context,
    *,
    output: OutputOption = None,
    addr: AddrOption = None,
    api_key: KeyOption = None,
    quiet: QuietOption = False,
    no_color: NoColorOption = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """Serve many language models from few machines."""
    if version:
        print(f"sllmd {__version__}")
        raise typer.Exit
    ctx.obj = Session(
        given_options(
            SharedOptions(), output=output, addr=addr, api_key=api_key, quiet=quiet, no_color=no_color
        )
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process with its exit code."""
    configure_command_logs()
    app(args=arguments)

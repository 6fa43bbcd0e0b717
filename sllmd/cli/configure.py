"""Commands about the configuration and the program itself; none needs a daemon."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Annotated

import typer

from sllmd import __version__
from sllmd.api.exposure import check_exposure
from sllmd.cli.session import Session, command
from sllmd.config.layers import ENVIRONMENT_PREFIX
from sllmd.config.loading import Loaded, load_config
from sllmd.config.reference import effective, json_schema, reference
from sllmd.core.errors import ConfigError, Conflict, InvalidRequest, ModelNotFound, PathNotFound, StoreError
from sllmd.store.store import Store

app = typer.Typer()
config_app = typer.Typer(help="Check and show the configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")

FileArgument = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="(default: ~/.config/sllmd or /etc/sllmd/sllmd.toml)")
]
FileOption = Annotated[Path | None, typer.Option("--config", help="The same as FILE, as for `sllmd start`.")]
DevOption = Annotated[bool, typer.Option("--dev", help="As `sllmd start --dev` would have it.")]


@command(app, "version")
def version(session: Session) -> None:
    """Show the version."""
    python = platform.python_version()
    session.show_object({"version": __version__, "python": python}, f"sllmd {__version__}, Python {python}")


@command(config_app, "check")
def check(
    session: Session, file: FileArgument = None, config: FileOption = None, dev: DevOption = False
) -> None:
    """Try a configuration as `sllmd start` would read it, without starting anything."""
    loaded = load_config(_one_file(file, config), dev=dev)
    check_exposure(loaded.config.api)
    _check_sources(loaded)
    read = str(loaded.file) if loaded.file else None
    variables = sorted(name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX) and "__" in name)
    where = ", ".join([read or "no file", *variables, *([] if read or variables else ["all defaults"])])
    session.show_object(
        {"ok": True, "file": read, "variables": variables}, f"configuration is good ({where})"
    )


def _one_file(argument: Path | None, option: Path | None) -> Path | None:
    if argument is not None and option is not None:
        raise InvalidRequest(f"two files are named: {argument} and {option}")
    return argument or option


def _check_sources(loaded: Loaded) -> None:
    """Raise ConfigError for a model that would be imported at start from a place that is not there."""
    store = Store(loaded.config.node.store_directory)
    for name, model in loaded.config.models.items():
        local = model.source is not None and not re.match(r"builtin:|https?://", model.source)
        if not local or Path(str(model.source)).expanduser().exists():
            continue
        try:
            store.model(name)
        except ModelNotFound:
            where = loaded.origin(("models", name, "source"))
            raise ConfigError(f"{where}: `models.{name}.source`: {model.source} does not exist") from None


@command(config_app, "show")
def show(
    session: Session,
    file: FileArgument = None,
    config: FileOption = None,
    dev: DevOption = False,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
) -> None:
    """Show the configuration in force."""
    loaded = load_config(_one_file(file, config), dev=dev)
    values = loaded.config.model_dump(mode="json")
    if origin:
        values = {
            "config": values,
            "origins": {".".join(path): text for path, text in loaded.origins.items()},
        }
    session.show_object(values, effective(loaded, origin=origin).rstrip())


@command(config_app, "schema")
def schema(session: Session) -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    print(json.dumps(json_schema(), indent=None if session.output.value == "jsonl" else 2))


@command(config_app, "init")
def init(
    session: Session,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="(default: standard output)")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a configuration file with every key, its default and what it does; without FILE, print it."""
    if file is None:
        session.show_object({"file": None, "toml": reference()}, reference().rstrip())
        return
    try:
        with file.open("w" if force else "x", encoding="utf-8") as out:
            out.write(reference())
    except FileExistsError:
        raise Conflict(f"{file} is there already", hint="--force writes over it") from None
    except FileNotFoundError:
        raise PathNotFound(
            f"{file.parent} does not exist", hint="create that directory, or name a file in another"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot write {file}: {error.strerror}") from None
    session.show_object({"file": str(file)}, f"wrote {file}")

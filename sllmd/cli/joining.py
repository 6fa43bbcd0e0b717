"""Commands about how nodes come in: join tokens, the cluster key, the keys of gossip."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from sllmd.cli.client import segment
from sllmd.cli.session import Session, command, duration_option
from sllmd.cli.tables import Column
from sllmd.core.errors import Conflict, StoreError
from sllmd.core.units import format_seconds
from sllmd.wire.cluster_key import KEY_BYTES, ClusterKey

app = typer.Typer()
token_app = typer.Typer(help="Make, list and revoke join tokens.", no_args_is_help=True)
keyring_app = typer.Typer(help="Show and replace the keys of gossip.", no_args_is_help=True)
app.add_typer(token_app, name="token")
app.add_typer(keyring_app, name="keyring")


@command(token_app, "create")
def create(
    session: Session,
    ttl: Annotated[str, typer.Option(help="How long it is good: 30m, 24h, 7d.")] = "24h",
    uses: Annotated[int, typer.Option(help="How many nodes may join with it.", min=1)] = 1,
    file: Annotated[
        Path | None, typer.Option(help="Write it there, readable for you alone, instead of showing it.")
    ] = None,
) -> None:
    """Make a join token. It is shown now and never again."""
    body = {"lifetime_seconds": duration_option("--ttl", ttl), "uses": uses}
    made = session.client.post("/sllmd/v1/tokens", body)
    shown = made["token"]
    if file is not None:
        file = file.absolute()
        _write_secret(file, shown)
        shown = str(file)
        made = {key: value for key, value in made.items() if key != "token"} | {"file": str(file)}
    session.show_object(made, shown)
    option = f"--set cluster.token_file={file}" if file is not None else f"--token {shown}"
    session.note(f"\nGood for {_times(uses)} until {_when(made['expires_at'])}.")
    for line in how_to_join(made["join"], option):
        session.note(line)


def how_to_join(join: str, option: str) -> Iterator[str]:
    """What to type where; first of all, whether another machine can come in at all."""
    where = "On the new machine"
    if join.startswith(("127.", "[::1]")):
        yield f"This node listens at {join}: other machines cannot reach it. Start it again with"
        yield "--cluster-listen 0.0.0.0 ([cluster] listen), and the token is good for them, too."
        where = "As it is, on this machine"
    yield f"{where}:"
    yield f"  sllmd start --join {join} {option}"


@command(token_app, "list")
def list_tokens(session: Session) -> None:
    """List join tokens that may still be used."""
    rows = session.client.get("/sllmd/v1/tokens")["tokens"]
    session.show_rows(rows, _TOKEN_COLUMNS, empty="no join tokens; `sllmd token create` makes one")


@command(token_app, "revoke")
def revoke(
    session: Session, token_id: Annotated[str, typer.Argument(metavar="ID", help="See `sllmd token list`.")]
) -> None:
    """Take a join token back; nodes that joined with it stay."""
    answer = session.client.delete(f"/sllmd/v1/tokens/{segment(token_id)}")
    session.show_object(answer, f"{token_id} is revoked")


@command(token_app, "keyfile")
def keyfile(
    session: Session, path: Annotated[Path, typer.Argument(metavar="PATH", help="A file that is not there.")]
) -> None:
    """Make a cluster key for a scripted fleet: whoever has it may join. Needs no daemon."""
    _write_secret(path, str(ClusterKey(os.urandom(KEY_BYTES))))
    session.show_object({"file": str(path)}, str(path))
    session.note("Copy it to every node, and name it in [cluster] secret_file.")


@command(keyring_app, "list")
def list_keyring(session: Session) -> None:
    """Show which gossip keys each node has installed, by id; the first one is in use."""
    answer = session.client.get("/sllmd/v1/keyring")
    session.show_rows(answer["nodes"], _KEYRING_COLUMNS, empty="no nodes")
    for lost in answer["unreachable"]:
        session.note(f"{lost['node'] or lost['id']} does not answer: {lost['reason']}")


@command(keyring_app, "rotate")
def rotate(session: Session) -> None:
    """Replace the gossip key on all nodes while they run."""
    answer = session.client.post("/sllmd/v1/keyring/rotate")
    session.show_object(answer, f"all nodes use key {answer['key']} now; the old one is gone")


def _write_secret(path: Path, text: str) -> None:
    """A new file for its owner's eyes. Raises Conflict, StoreError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Conflict(
            f"{path} is there already", hint="nothing was overwritten; choose another name"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")


def _times(uses: int) -> str:
    return "one node" if uses == 1 else f"{uses} nodes"


def _when(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def _left(row: Any) -> str:
    seconds = row["expires_at"] - dt.datetime.now(dt.UTC).timestamp()
    return "for ever" if seconds > _FOR_EVER_SECONDS else format_seconds(max(0.0, seconds))


_FOR_EVER_SECONDS = 100 * 365 * 86400.0
_TOKEN_COLUMNS = (
    Column("ID", lambda row: row["id"]),
    Column("GOOD FOR", _left),
    Column(
        "USES LEFT", lambda row: "any" if row["uses_left"] > 1_000_000 else str(row["uses_left"]), right=True
    ),
    Column("USED", lambda row: str(row["used"]), right=True),
)
_KEYRING_COLUMNS = (
    Column("NODE", lambda row: row["node"]),
    Column("KEYS", lambda row: ", ".join(row["keys"])),
    Column("ID", lambda row: row["id"], wide=True),
)

"""``sllmd recover``: the way out when most voters of a cluster are lost for good."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sllmd.cli.session import Session, command
from sllmd.cluster.home import Home, claimed
from sllmd.cluster.recovering import go_on_alone
from sllmd.config.loading import load_config
from sllmd.core.errors import InvalidRequest, PathNotFound
from sllmd.daemon import DEV_DIRECTORY, DIRECTORY

app = typer.Typer()


@command(app, "recover")
def recover(
    session: Session,
    config: Annotated[
        Path | None, typer.Option(help="Configuration file; SLLMD_CONFIG does the same.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Of the node that shall go on.")] = None,
    dev: Annotated[bool, typer.Option("--dev", help="The node runs with --dev.")] = False,
    force_new_cluster: Annotated[
        bool, typer.Option("--force-new-cluster", help="Say that the other voters are lost for good.")
    ] = False,
) -> None:
    """Make this node go on alone, with all that it knows. Its daemon must not run; it cannot be undone."""
    if not force_new_cluster:
        raise InvalidRequest(
            "this gives the other voters up for good: what only they knew is lost",
            hint="while a majority of voters can come back, bring them back instead; else add "
            "--force-new-cluster, on one node only",
        )
    flags = [] if data_dir is None else [(("node", "data_dir"), data_dir, "--data-dir")]
    loaded = load_config(config, flags=flags, dev=dev).config
    if loaded.cluster.store == "etcd":
        raise InvalidRequest("an etcd keeps this cluster's agreement", hint="recover the etcd instead")
    directory = loaded.node.data_dir / (DEV_DIRECTORY if dev else DIRECTORY)
    if not directory.is_dir():
        raise PathNotFound(f"{directory} is not there: no node of a cluster", hint="name its --data-dir")
    with claimed(loaded.node.data_dir):
        home = Home(directory)
        done = go_on_alone(home, loaded.cluster.journal)
    session.show_object(asdict(done), f"{done.name} goes on alone as cluster {done.cluster_id}; start it now")
    if done.lost:
        session.note(f"no members any more: {', '.join(done.lost)}")
        session.note("each of them can join again, as a new node with an empty data directory")
    if done.new_authority:
        session.note("the cluster's CA was lost with them: every other node has to join anew, too")

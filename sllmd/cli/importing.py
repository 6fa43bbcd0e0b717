"""``sllmd import``: apart from the other commands on the store, since converting needs more than reading."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from sllmd.cli.models import StoreOption, bytes_told, checkpoint_json, store_of
from sllmd.cli.session import Session, command
from sllmd.core.units import format_bytes, format_seconds
from sllmd.store.importing import default_name, import_checkpoint
from sllmd.store.progress import ImportProgress

app = typer.Typer()


@command(app, "import")
def import_(
    session: Session,
    source: Annotated[
        str,
        typer.Argument(
            help="A directory, a .safetensors, .bin, .pt or .gguf file, a URL, hf://ORG/NAME; - reads it "
            "from standard input, so that a signed URL is in nobody's list of processes."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="What to call it. (default: from the source)")] = None,
    partitions: Annotated[int, typer.Option(min=1, help="Devices that the model will be spread over.")] = 1,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Serve a safetensors directory where it lies, without a copy.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put it in the place of another model of that name.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Bring a model into the store: converted once, so that every load is fast.

    A name that another model has is refused; the same model again is there already.
    """
    began_seconds = time.monotonic()
    into = store_of(session, store)
    if source == "-":
        source = sys.stdin.readline().strip()
    before = {model.name: model for model in into.models()}
    label = name or default_name(source)
    with bytes_told(session, label) as update:

        def on_progress(progress: ImportProgress) -> None:
            update(progress.stage, progress.bytes_done, progress.bytes_total)

        try:
            checkpoint = import_checkpoint(
                into,
                source,
                name=name,
                partitions=partitions,
                in_place=in_place,
                replace=replace,
                on_progress=on_progress,
            )
        except KeyboardInterrupt:
            session.note("sllmd: interrupted; the store is as it was")
            raise
    seconds = time.monotonic() - began_seconds
    found = before.get(checkpoint.name)
    replaced = found.digest if found and found.digest not in ("", checkpoint.manifest.digest) else None
    there_already = found is not None and found.directory == checkpoint.directory.name
    did = f"{format_bytes(checkpoint.manifest.size_bytes)} in {format_seconds(seconds)}"
    if there_already:
        did = "there already, the same"
    elif replaced:
        did = f"{did}, in place of {replaced[:8]} of that name"
    elif found is not None:
        did = f"{did}, in place of its damaged copy"
    more = {"seconds": seconds, "replaced": replaced, "there_already": there_already}
    text = f"{checkpoint.name}: {did}. Try: sllmd run {checkpoint.name}"
    session.show_object(checkpoint_json(checkpoint) | more, text)

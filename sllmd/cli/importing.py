"""``sllmd import``: apart from the other commands on the store, since converting needs more than reading."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from sllmd.cli.models import StoreOption, checkpoint_json, store_of
from sllmd.cli.progress import byte_bar
from sllmd.cli.session import Session, command
from sllmd.core.units import format_bytes, format_seconds
from sllmd.store.importing import ImportProgress, import_checkpoint

app = typer.Typer()


@command(app, "import")
def import_(
    session: Session,
    source: Annotated[
        str, typer.Argument(help="A directory, a .safetensors, .bin, .pt or .gguf file, a URL, builtin:tiny.")
    ],
    name: Annotated[str | None, typer.Option(help="What to call it. [default: from the source]")] = None,
    partitions: Annotated[int, typer.Option(min=1, help="Devices that the model will be spread over.")] = 1,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Serve a safetensors directory where it lies, without a copy.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Bring a model into the store: converted once, so that every load is fast."""
    began_seconds = time.monotonic()
    into = store_of(session, store)
    before = {model.name: model for model in into.models()}
    with byte_bar(name or Path(source).name, shown=session.shows_progress) as update:

        def on_progress(progress: ImportProgress) -> None:
            update(progress.stage, progress.bytes_done, progress.bytes_total)

        try:
            checkpoint = import_checkpoint(
                into,
                source,
                name=name,
                partitions=partitions,
                in_place=in_place,
                on_progress=on_progress,
            )
        except KeyboardInterrupt:
            session.note("sllmd: interrupted; the store is as it was")
            raise
    seconds = time.monotonic() - began_seconds
    size = format_bytes(checkpoint.manifest.size_bytes)
    replaced = before.get(checkpoint.name)
    instead = f", in place of {replaced.digest[:8]} of that name" if replaced else ""
    text = f"{checkpoint.name}: {size} in {format_seconds(seconds)}{instead}."
    text = f"{text} Try: sllmd run {checkpoint.name}"
    more = {"seconds": seconds, "replaced": replaced.digest if replaced else None}
    session.show_object(checkpoint_json(checkpoint) | more, text)

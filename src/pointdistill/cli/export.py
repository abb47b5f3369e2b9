"""``pointdistill export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    output: Annotated[Path, typer.Argument(help="Folder to write; made if absent.")],
    encoder: Annotated[
        Path | None,
        typer.Option(help="Run or encoder folder; by default the last run made in this folder."),
    ] = None,
) -> None:
    """Write an encoder as model.safetensors + config.json, for `pointdistill.load_encoder`."""
    from pointdistill.data.workspace import last_run
    from pointdistill.engine.weights import export_encoder
    from pointdistill.errors import CheckpointError

    source = encoder or last_run()
    if source is None:
        msg = "no run was made in this folder yet; run `pointdistill pretrain`, or name one with --encoder"
        raise CheckpointError(msg)
    folder = export_encoder(source, output)
    typer.echo(f"{folder} -> {output}/model.safetensors, {output}/config.json")
    typer.echo(f"next: in Python, pointdistill.load_encoder({str(output)!r})")

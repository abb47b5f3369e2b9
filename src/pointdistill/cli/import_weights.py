"""``pointdistill import-weights``."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class BranchName(StrEnum):
    """Which encoder of a checkpoint; repeated here so that ``--help`` does not load torch."""

    TEACHER = "teacher"
    STUDENT = "student"


def import_weights(
    checkpoint: Annotated[Path, typer.Argument(help="A published .ckpt file of the method.")],
    output: Annotated[Path, typer.Option(help="Folder to write; made if absent.")],
    branch: Annotated[
        BranchName, typer.Option(help="Which encoder; evaluation reads the teacher's.")
    ] = BranchName.TEACHER,
    heads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Attention heads, for a width that the paper does not have. Default: as the file says.",
        ),
    ] = None,
) -> None:
    """Turn a published checkpoint into an encoder folder; the file is read as data, nothing in it is run."""
    from pointdistill.engine.exchange.published import import_weights as run

    found = run(checkpoint, output, branch=branch.value, heads=heads)
    config = found.encoder.config
    trained = f"mode {found.mode}" if found.mode else "mode not known"
    typer.echo(
        f"{checkpoint}: {found.branch}, {trained}, {found.parameters:,} parameters, width {config.width}, "
        f"depth {config.depth}, {config.heads} heads ({found.heads_from})"
    )
    typer.echo(f"-> {output}/model.safetensors, {output}/config.json")
    typer.echo(
        "the file does not say which shapes it saw; ask whoever published it for their licences"
    )
    typer.echo(f"next: pointdistill evaluate scanobjectnn --encoder {shlex.quote(str(output))}")

"""``pointdistill pretrain``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Size(StrEnum):
    """Names of the recipes, repeated here so that ``--help`` does not load torch; a test compares them."""

    TINY = "tiny"
    SMALL = "small"
    BASE = "base"
    LARGE = "large"


class ModeName(StrEnum):
    """The training modes, repeated here for the same reason."""

    DUAL = "dual"
    CLS = "cls"
    MPM = "mpm"


def pretrain(
    size: Annotated[
        Size | None,
        typer.Option(help="The paper's small, base, large; tiny for a CPU. Default: small."),
    ] = None,
    mode: Annotated[
        ModeName | None,
        typer.Option(help="Both objectives, CLS or masked patches alone. Default: dual."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Corpus folder; by default the last one made in this folder."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder of the run; by default a new one under runs/.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on from the newest checkpoint of --run, or of the last run."
        ),
    ] = False,
    init_from: Annotated[
        Path | None, typer.Option(help="Encoder or run folder whose weights to begin with.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the corpus.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Optimiser steps of the whole run, instead of --epochs."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Shapes a step, over all processes.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Of weights, order, views, masks. Default: 0."),
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto (bf16 on a GPU), no, or bf16.")] = "auto",
) -> None:
    """Pretrain an encoder on a corpus, with no labels. Ctrl-C saves; --resume goes on."""
    from pointdistill.cli.training import run_pretraining

    run_pretraining(
        size=size.value if size else None,
        mode=mode.value if mode else None,
        data=data,
        run=run,
        resume=resume,
        init_from=init_from,
        changes={"epochs": epochs, "steps": steps, "batch_size": batch_size, "seed": seed},
        save_every=save_every,
        device=device,
        precision=precision,
    )

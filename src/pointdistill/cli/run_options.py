"""Options that say what a run computes, shared by ``pretrain`` and ``plan``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pointdistill.engine.settings import Asked


class Size(StrEnum):
    """The engine's sizes, repeated here so that ``--help`` does not load torch; a test compares them."""

    TINY = "tiny"
    SMALL = "small"
    BASE = "base"
    LARGE = "large"


class ModeName(StrEnum):
    """The training modes, repeated here for the same reason."""

    DUAL = "dual"
    CLS = "cls"
    MPM = "mpm"


RecipeOption = Annotated[
    str | None,
    typer.Option(help="A complete run by name; `pointdistill recipes` lists them."),
]
SizeOption = Annotated[
    Size | None,
    typer.Option(help="The paper's small, base, large; tiny for a CPU. Default: small."),
]
ModeOption = Annotated[
    ModeName | None,
    typer.Option(help="Both objectives, CLS or masked patches alone. Default: dual."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(help="Settings to change, as TOML, or all of them: a run's config.json."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting, as in masking.ratio=0.8; may be given several times.",
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(help="Corpus folder; by default the last one made in this folder."),
]
EpochsOption = Annotated[int | None, typer.Option(min=1, help="Passes over the corpus.")]
StepsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Optimiser steps of the whole run, instead of --epochs."),
]
BatchSizeOption = Annotated[
    int | None, typer.Option(min=1, help="Shapes a step, over all processes.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
PrecisionOption = Annotated[
    str, typer.Option(help="auto (as begun; a new run: bf16 on a GPU), no, or bf16.")
]
KeepOption = Annotated[int, typer.Option(min=1, help="Checkpoints kept, the newest.")]


def asked_for(
    *,
    recipe: str | None,
    size: Size | None,
    mode: ModeName | None,
    config: Path | None,
    changes: list[str] | None,
    epochs: int | None,
    steps: int | None,
    batch_size: int | None,
    seed: int | None = None,
) -> Asked:
    """What these options say of a run, for the engine."""
    from pointdistill.engine.settings import Asked

    return Asked(
        recipe=recipe,
        size=size.value if size else None,
        mode=mode.value if mode else None,
        config=config,
        set=tuple(changes or ()),
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
    )

"""``pointdistill pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pointdistill.cli.options import (
    BatchSizeOption,
    ConfigOption,
    DataOption,
    DeviceOption,
    EpochsOption,
    KeepOption,
    ModeOption,
    PrecisionOption,
    RecipeOption,
    SetOption,
    SizeOption,
    StepsOption,
    require_encoder,
    require_paths,
    run_overrides,
)


def pretrain(
    recipe: RecipeOption = None,
    size: SizeOption = None,
    mode: ModeOption = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    data: DataOption = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder of the run; by default a new one under runs/.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue from the newest checkpoint of --run, or of the last run."
        ),
    ] = False,
    init_from: Annotated[
        Path | None, typer.Option(help="Encoder or run folder whose weights to start from.")
    ] = None,
    epochs: EpochsOption = None,
    steps: StepsOption = None,
    batch_size: BatchSizeOption = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, max=2**63 - 1, help="Seed of weights, order, views and masks. Default: 0."
        ),
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps that a crash may cost.")] = 500,
    keep: KeepOption = 2,
    probe: Annotated[
        str | None,
        typer.Option(
            help="Evaluate the teacher during training by nearest neighbours on: builtin, a corpus, or an archive."
        ),
    ] = None,
    probe_every: Annotated[int, typer.Option(min=1, help="Epochs between probes.")] = 5,
    track: Annotated[
        list[str] | None,
        typer.Option(
            help="Also log to one of Accelerate's trackers, such as tensorboard or wandb."
        ),
    ] = None,
    sharding: Annotated[
        str,
        typer.Option(help="none: each process holds the model; fsdp: each holds a part of it."),
    ] = "none",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Pretrain an encoder on a corpus, with no labels. Ctrl-C saves; --resume continues."""
    overrides = run_overrides(
        recipe=recipe,
        size=size,
        mode=mode,
        config=config,
        changes=changes,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
    )
    require_paths([data], "data")
    if resume:
        require_paths([run], "run")
    if init_from is not None:
        require_encoder(init_from, "init_from")

    from pointdistill.cli.training import run_pretraining
    from pointdistill.engine.training.run_options import RunOptions

    run_pretraining(
        overrides,
        data=data,
        run=run,
        resume=resume,
        init_from=init_from,
        options=RunOptions(
            device=device,
            precision=precision,
            sharding=sharding,
            save_every=save_every,
            keep=keep,
            track=tuple(track or ()),
            probe=probe,
            probe_every=probe_every,
        ),
    )

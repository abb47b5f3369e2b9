"""``pointdistill plan``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from pointdistill.cli.run_options import (
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
    asked_for,
)

if TYPE_CHECKING:
    from pointdistill.engine.plan import Plan

GIGA, TERA = 1e9, 1e12


def plan(
    recipe: RecipeOption = None,
    size: SizeOption = None,
    mode: ModeOption = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    data: DataOption = None,
    shapes: Annotated[
        int | None,
        typer.Option(min=1, help="Plan without a corpus, for one of so many shapes."),
    ] = None,
    epochs: EpochsOption = None,
    steps: StepsOption = None,
    batch_size: BatchSizeOption = None,
    keep: KeepOption = 2,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    no_measure: Annotated[
        bool,
        typer.Option(
            "--no-measure", help="Take no steps, which is a minute less: arithmetic alone."
        ),
    ] = False,
) -> None:
    """Say what a run will cost on this device: memory, hours, disk. Nothing is kept."""
    from rich.console import Console

    from pointdistill.cli.training_progress import say
    from pointdistill.engine.plan import make_plan
    from pointdistill.engine.training.run_options import RunOptions

    asked = asked_for(
        recipe=recipe,
        size=size,
        mode=mode,
        config=config,
        changes=changes,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
    )
    console = Console(stderr=True)
    made = make_plan(
        asked,
        data=data,
        shapes=shapes,
        options=RunOptions(device=device, precision=precision, keep=keep),
        measured=not no_measure,
        report=lambda line: say(console, line),
    )
    for remark in made.remarks:
        say(console, remark)
    for name, text in describe(made):
        typer.echo(f"{name:<11} {text}")
    for problem in made.problems:
        typer.echo(f"problem: {problem}")
    words = [*asked.words(), *(["--data", str(data)] if data else [])]
    words += [] if keep == 2 else ["--keep", str(keep)]
    words += [] if device == "auto" else ["--device", device]
    words += [] if precision == "auto" else ["--precision", precision]
    typer.echo(f"next: {shlex.join(['pointdistill', 'pretrain', *words])}")


def describe(plan: Plan) -> list[tuple[str, str]]:
    """The plan in words, line by line."""
    config, count = plan.config, plan.parameters
    epochs = plan.steps * config.batch_size / plan.shapes
    lines = [
        ("run", f"{config.name}, {config.mode} mode"),
        (
            "parameters",
            f"{count.encoder / 1e6:.1f} M in the encoder, {count.student / 1e6:.1f} M trained, "
            f"{count.teacher / 1e6:.1f} M in the teacher",
        ),
        ("corpus", f"{plan.corpus or 'none yet, synthetic'}: {plan.shapes:,} shapes"),
    ]
    lines += [
        ("licence", f"{name}: {licence} ({kept:,} shapes)") for name, licence, kept in plan.licences
    ]
    return [
        *lines,
        ("steps", f"{plan.steps:,} of {config.batch_size} shapes ({epochs:.1f} epochs)"),
        ("device", f"{plan.device}, {plan.memory_gib:.1f} GiB"),
        ("memory", _memory(plan)),
        ("time", _time(plan)),
        ("disk", f"{plan.disk_gib:.2f} GiB at most for checkpoints, {plan.free_gib:.0f} GiB free"),
        ("basis", plan.step.basis),
    ]


def _memory(plan: Plan) -> str:
    if plan.step.gib is None:
        return "not known: this system does not say what a process held"
    return f"{plan.step.gib:.2f} GiB at its peak"


def _time(plan: Plan) -> str:
    """Hours; without measured steps what they would be at a round speed."""
    from pointdistill.cli.training_progress import span

    large = plan.flops >= TERA
    work = f"{plan.flops / (TERA if large else GIGA):.3g} {'TFLOP' if large else 'GFLOP'} a step"
    if plan.step.seconds is None:
        sustained = 10 * TERA
        whole = span(plan.steps * plan.flops / sustained)
        return f"not measured; {work}: {whole} in all at a sustained 10 TFLOP/s"
    speed = plan.config.batch_size / plan.step.seconds
    return (
        f"{span(plan.steps * plan.step.seconds)} in all: {plan.step.seconds:.3g} s a step, "
        f"{speed:.3g} shapes/s, {work}"
    )

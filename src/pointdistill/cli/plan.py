"""``pointdistill plan``: what a run will cost."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from pointdistill.cli.console import console_reporter, echo, name_options
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
    require_paths,
    run_overrides,
    to_argv,
)
from pointdistill.reporter import format_duration

if TYPE_CHECKING:
    from pointdistill.engine.planning import Plan

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
        typer.Option(min=1, help="Plan without a corpus, for this many shapes."),
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
            "--no-measure", help="Run no steps, which saves a minute: estimate by formulas alone."
        ),
    ] = False,
) -> None:
    """Estimate what a run will cost on this device: memory, time, disk. Nothing is written."""
    overrides = run_overrides(
        recipe=recipe,
        size=size,
        mode=mode,
        config=config,
        changes=changes,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
    )
    require_paths([data], "data")

    from pointdistill.engine.planning import make_plan
    from pointdistill.engine.pretraining.trainer import RunOptions

    with console_reporter() as reporter:
        result = make_plan(
            overrides,
            data=data,
            shapes=shapes,
            options=RunOptions(device=device, precision=precision, keep=keep),
            measured=not no_measure,
            reporter=reporter,
        )
        for remark in result.remarks:
            reporter.say(remark)
    for name, text in describe(result):
        echo(f"{name:<11} {text}")
    for problem, setting in result.problems:
        echo(f"problem: {name_options(problem, (setting,))}")
    argv = [*to_argv(overrides), *(["--data", str(data)] if data else [])]
    argv += [] if keep == 2 else ["--keep", str(keep)]
    argv += [] if device == "auto" else ["--device", device]
    argv += [] if precision == "auto" else ["--precision", precision]
    echo(f"next: {shlex.join(['pointdistill', 'pretrain', *argv])}")


def describe(plan: Plan) -> list[tuple[str, str]]:
    """Name and text of each line of the plan."""
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
        ("licence", f"{name}: {licence} ({shapes:,} shapes)")
        for name, licence, shapes in plan.licences
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
        return "not known: this system does not report the memory of a process"
    return f"{plan.step.gib:.2f} GiB at its peak"


def _time(plan: Plan) -> str:
    """The expected time; without measured steps, the time at 10 TFLOP/s."""
    large = plan.flops >= TERA
    work = f"{plan.flops / (TERA if large else GIGA):.3g} {'TFLOP' if large else 'GFLOP'} per step"
    if plan.step.seconds is None:
        sustained = 10 * TERA
        duration = format_duration(plan.steps * plan.flops / sustained)
        return f"not measured; {work}: {duration} in all at a sustained 10 TFLOP/s"
    speed = plan.config.batch_size / plan.step.seconds
    return (
        f"{format_duration(plan.steps * plan.step.seconds)} in all: {plan.step.seconds:.3g} s per step, "
        f"{speed:.3g} shapes/s, {work}"
    )

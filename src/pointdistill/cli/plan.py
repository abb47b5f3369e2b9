"""``pointdistill recipes`` and ``plan``: which runs have a name, and what a run will cost."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointdistill.cli.console import (
    console_reporter,
    echo,
    echo_lines,
    name_options,
    print_json,
    print_table,
)
from pointdistill.cli.options import (
    BatchSizeOption,
    ConfigOption,
    DataOption,
    DeviceOption,
    EpochsOption,
    JsonOption,
    KeepOption,
    ModeOption,
    PrecisionOption,
    RecipeOption,
    SetOption,
    SizeOption,
    StepsOption,
    complete_gpu,
    complete_recipe,
    require_paths,
    run_overrides,
    to_argv,
)
from pointdistill.reporter import format_duration, plural

if TYPE_CHECKING:
    from pointdistill.engine.planning import Plan

GIGA, TERA = 1e9, 1e12

YOUR_CORPUS = "YOUR_CORPUS"
"""Stands for a corpus that the program does not know, in a command to run."""

SLOW_SECONDS = 6 * 3600.0
"""A run that is expected to take longer than this on a CPU gets a warning before it starts."""


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Print this recipe in full, as a file for --config.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the named runs, or print one of them with every setting."""
    from pointdistill.data.files.schema import to_plain
    from pointdistill.engine.config.recipes import ADAPT, RECIPES, find_recipe
    from pointdistill.engine.config.settings import as_toml
    from pointdistill.engine.reports.tables import Table

    if name is not None:
        recipe = find_recipe(name)
        if as_json:
            known = {"name": name, "about": recipe.about, "config": to_plain(recipe.config)}
            print_json("recipe", known)
            return
        for line in recipe.about.splitlines():
            echo(f"# {line}".rstrip())
        own = (
            "--init-from ENCODER --data YOUR_FILES"
            if name == ADAPT
            else f"--recipe {shlex.quote(name)}"
        )
        echo(f"# Run: pointdistill pretrain {own}")
        echo("")
        echo_lines(as_toml(recipe.config))
        return
    records = [
        {
            "name": recipe.name,
            "mode": recipe.config.mode,
            "steps": recipe.config.steps,
            "epochs": None if recipe.config.steps else recipe.config.epochs,
            "batch_size": recipe.config.batch_size,
            "summary": recipe.summary,
        }
        for recipe in RECIPES.values()
    ]
    if as_json:
        print_json("recipes", {"recipes": records})
        return
    rows = tuple(
        (
            str(record["name"]),
            str(record["mode"]),
            _length(record),
            str(record["batch_size"]),
            str(record["summary"]),
        )
        for record in records
    )
    print_table(Table("Recipes", ("name", "mode", "length", "batch", "what it is"), rows))
    echo("next: pointdistill recipes NAME   (one in full), or: pointdistill plan --recipe NAME")


def _length(record: dict[str, Any]) -> str:
    """How long a recipe's run is; that of ``adapt`` depends on the shapes."""
    from pointdistill.engine.config.recipes import ADAPT, ADAPT_EPOCHS, ADAPT_LEAST_STEPS

    if record["name"] == ADAPT:
        return f"{ADAPT_EPOCHS} epochs, at least {ADAPT_LEAST_STEPS} steps"
    return f"{record['steps']} steps" if record["steps"] else f"{record['epochs']} epochs"


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
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_gpu,
            help="Estimate for a GPU that need not be here, such as rtx4090 or h100, from its data sheet.",
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many of them share the batch.")] = 1,
    as_json: JsonOption = False,
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

    from pointdistill.engine.config.recipes import ADAPT
    from pointdistill.engine.planning import make_plan
    from pointdistill.engine.pretraining.trainer import RunOptions

    with console_reporter() as reporter:
        result = make_plan(
            overrides,
            data=data,
            shapes=shapes,
            options=RunOptions(device=device, precision=precision, keep=keep),
            measured=not no_measure,
            gpu=gpu,
            gpus=gpus,
            reporter=reporter,
        )
        for remark in result.remarks:
            reporter.say(remark)
    # A run of so many shapes, or on a GPU elsewhere, is not one on the last corpus made here.
    corpus = Path(YOUR_CORPUS) if data is None and (gpu or shapes is not None) else data
    argv = [*to_argv(overrides), *(["--data", str(corpus)] if corpus else [])]
    argv += ["--init-from", "ENCODER"] if recipe == ADAPT else []
    argv += [] if keep == 2 else ["--keep", str(keep)]
    argv += [] if device == "auto" else ["--device", device]
    argv += [] if precision == "auto" else ["--precision", precision]
    several = (
        ["accelerate", "launch", "--multi_gpu", "--num_processes", str(gpus), "-m"]
        if gpus > 1
        else []
    )
    command = shlex.join([*several, "pointdistill", "pretrain", *argv])
    problems = [name_options(problem, (setting,)) for problem, setting in result.problems]
    if as_json:
        print_json("plan", _record(result) | {"problems": problems, "command": command})
        return
    for name, text in _describe(result):
        echo(f"{name:<11} {text}")
    for problem in problems:
        echo(f"problem: {problem}")
    seconds = None if gpu else _cpu_seconds(result, device)
    if seconds is not None and seconds >= SLOW_SECONDS:
        echo(f"next: {tiny_command(corpus)}   (minutes on this CPU; on a GPU: {command})")
    else:
        echo(f"next: {command}{'   (on that machine)' if gpu else ''}")


def _record(plan: Plan) -> dict[str, Any]:
    """The plan with the unit in the name of each quantity; None for what was not measured."""
    seconds = plan.step.seconds
    return {
        "run": plan.config.name,
        "mode": plan.config.mode,
        "parameters": plan.parameters,
        "corpus": plan.corpus,
        "shapes": plan.shapes,
        "licences": [
            {"source": name, "licence": licence, "shapes": shapes}
            for name, licence, shapes in plan.licences
        ],
        "steps": plan.steps,
        "batch_size": plan.config.batch_size,
        "epochs": plan.steps * plan.config.batch_size / plan.shapes,
        "device": plan.device,
        "device_memory_gib": plan.memory_gib,
        "memory_gib": plan.step.gib,
        "fits": plan.step.fits,
        "flops_per_step": plan.flops,
        "seconds_per_step": seconds,
        "seconds": None if seconds is None else plan.steps * seconds,
        "disk_gib": plan.disk_gib,
        "free_gib": plan.free_gib,
        "basis": plan.step.basis,
        "remarks": list(plan.remarks),
    }


def _cpu_seconds(plan: Plan, device: str) -> float | None:
    """How long the planned run takes on a CPU, measured or by a rough estimate; None on a GPU."""
    from pointdistill.engine.pretraining.cost import cpu_seconds
    from pointdistill.engine.runtime.devices import pick_device

    if pick_device(device).type != "cpu":
        return None
    if plan.step.seconds is not None:
        return plan.steps * plan.step.seconds
    return cpu_seconds(plan.config, plan.shapes)


def _describe(plan: Plan) -> list[tuple[str, str]]:
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
        ("corpus", f"{plan.corpus or 'none yet, synthetic'}: {plural(plan.shapes, 'shape')}"),
    ]
    lines += [
        ("licence", f"{name}: {licence} ({plural(shapes, 'shape')})")
        for name, licence, shapes in plan.licences
    ]
    free = "" if plan.free_gib is None else f", {plan.free_gib:.0f} GiB free"
    return [
        *lines,
        ("steps", f"{plan.steps:,} of {plural(config.batch_size, 'shape')} ({epochs:.1f} epochs)"),
        ("device", f"{plan.device}, {plan.memory_gib:.1f} GiB"),
        ("memory", _memory(plan)),
        ("time", _time(plan)),
        ("disk", f"{plan.disk_gib:.2f} GiB at most for checkpoints{free}"),
        ("basis", plan.step.basis),
    ]


def _memory(plan: Plan) -> str:
    if plan.step.gib is None:
        return "not known: this system does not report the memory of a process"
    return f"{plan.step.gib:.2f} GiB at its peak"


def _time(plan: Plan) -> str:
    """The expected time; without measured steps, the work of all of them."""
    large = plan.flops >= TERA
    work = f"{plan.flops / (TERA if large else GIGA):.3g} {'TFLOP' if large else 'GFLOP'} per step"
    if plan.step.seconds is None:
        return f"not measured; {work}, {plan.steps * plan.flops / TERA:,.3g} TFLOP in all"
    speed = plan.config.batch_size / plan.step.seconds
    if plan.step.seconds_at_most is not None:
        longest = plan.steps * plan.step.seconds_at_most
        return (
            f"estimated {format_duration(plan.steps * plan.step.seconds)} to {format_duration(longest)} in all: "
            f"{plan.step.seconds:.2g} to {plan.step.seconds_at_most:.2g} s per step, {work}"
        )
    return (
        f"{format_duration(plan.steps * plan.step.seconds)} in all: {plan.step.seconds:.3g} s per step, "
        f"{speed:.3g} shapes/s, {work}"
    )


def tiny_command(corpus: Path | None) -> str:
    """The command of a run that fits a CPU."""
    named = [] if corpus is None else ["--data", str(corpus)]
    return shlex.join(["pointdistill", "pretrain", "--size", "tiny", *named])

"""``pointdistill plan`` and ``pretrain``: what a run will cost, and the run itself."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pointdistill.cli.console import (
    TrainingConsole,
    console_reporter,
    echo,
    name_options,
    print_table,
    training_console,
)
from pointdistill.cli.options import (
    BatchSizeOption,
    CompileOption,
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
    to_argv,
)
from pointdistill.errors import ConfigError
from pointdistill.reporter import format_duration

if TYPE_CHECKING:
    from pointdistill.engine.config.settings import RunOverrides
    from pointdistill.engine.planning import Plan
    from pointdistill.engine.pretraining.adapting import Judgement
    from pointdistill.engine.pretraining.launch import PreparedRun
    from pointdistill.engine.pretraining.pretrain import RunResult
    from pointdistill.engine.pretraining.trainer import RunOptions

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


def pretrain(
    recipe: RecipeOption = None,
    size: SizeOption = None,
    mode: ModeOption = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    data: DataOption = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            "--run-folder",  # torchrun takes --run for an abbreviation of its own --run-path
            help="Folder of the run; by default a new one under runs/.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue from the newest checkpoint of --run, or of the last run."
        ),
    ] = False,
    init_from: Annotated[
        str | None,
        typer.Option(
            metavar="ENCODER",
            help="Start from these weights: run, encoder, owner/name on the Hub, or a name of `weights`. The "
            "recipe is then adapt by default, and --data may be a folder of meshes.",
        ),
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
    save_every: Annotated[int, typer.Option(min=1, help="Most steps that a crash can cost.")] = 500,
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
    compile_step: CompileOption = "auto",
) -> None:
    """Pretrain an encoder on a corpus, without labels. Ctrl-C saves; --resume continues."""
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

    from pointdistill.engine.pretraining.trainer import RunOptions

    _pretrain(
        overrides,
        data=data,
        run=run,
        resume=resume,
        init_from=init_from,
        options=RunOptions(
            device=device,
            precision=precision,
            sharding=sharding,
            compile=compile_step,
            save_every=save_every,
            keep=keep,
            track=tuple(track or ()),
            probe=probe,
            probe_every=probe_every,
        ),
    )


def _pretrain(
    overrides: RunOverrides,
    *,
    data: Path | None,
    run: Path | None,
    resume: bool,
    init_from: str | None,
    options: RunOptions,
) -> None:
    """Start or resume a run, show progress, and print the next command; exits with code 130 if interrupted."""
    from pointdistill.engine.pretraining.adapting import read_judgement
    from pointdistill.engine.pretraining.launch import announce, prepare_resumed_run, prepare_run
    from pointdistill.engine.runtime.devices import is_main_process

    if resume:
        if init_from is not None:
            msg = "--init-from starts a new run and --resume continues one; give one of them"
            raise ConfigError(msg)
        prepared = prepare_resumed_run(overrides, data=data, run=run)
    else:
        with console_reporter() as building:
            prepared = prepare_run(
                overrides,
                data=data,
                run=run,
                init_from=init_from,
                device=options.device,
                reporter=building,
            )
    with training_console(quiet=not is_main_process()) as reporter:
        for line in announce(prepared):
            reporter.say(line)
        result = _train(prepared, options, reporter)
    if not is_main_process():
        raise typer.Exit(130 if result.interrupted else 0)
    if result.interrupted:
        echo(
            f"stopped after step {result.step} of {result.total}; everything is saved in {result.run}"
        )
        echo(f"next: pointdistill pretrain --resume --run {shlex.quote(str(result.run))}")
        raise typer.Exit(130)
    judgement = read_judgement(result.run)
    if judgement is not None:
        _print_judgement(judgement, result.run)
    echo(f"{result.total} steps done; the teacher's encoder is in {result.run}/encoder")
    echo(
        "next: pointdistill embed YOUR_FILES   (or: pointdistill evaluate scanobjectnn --stand-in)"
    )


def _print_judgement(judgement: Judgement, run: Path) -> None:
    """Print what the features of the corpus were worth before and after the run."""
    from pointdistill.engine.pretraining.adapting import judgement_rows
    from pointdistill.engine.pretraining.run_folder import JUDGEMENT
    from pointdistill.engine.reports.tables import Table

    notes = [f"{judgement.shapes:,} shapes of the corpus; kept in {run / JUDGEMENT}."]
    if judgement.unchanged is not None:
        notes.append(
            f"{judgement.unchanged:.0f} % of the {judgement.neighbours} nearest of a shape are the same before "
            "and after."
        )
    if not judgement.folds:
        notes.append(
            "Without labels these figures say how consistent the features are, not how useful; one sub-folder a "
            "class gives labels."
        )
    columns = ("judged by", "before %", "after %")
    print_table(
        Table(
            "The weights before and after", columns, tuple(judgement_rows(judgement)), tuple(notes)
        )
    )


def _train(prepared: PreparedRun, options: RunOptions, reporter: TrainingConsole) -> RunResult:
    """Train, and turn running out of memory into an error that says what to change.

    Raises:
        ConfigError: if a step did not fit into memory.
    """
    from pointdistill.engine.pretraining.launch import execute
    from pointdistill.engine.runtime.devices import out_of_memory

    try:
        return execute(prepared, options, reporter)
    except Exception as error:
        if not out_of_memory(error):
            raise
        batch = prepared.config.batch_size
        msg = (
            f"a step of {batch} shapes does not fit into the memory of this device; give a smaller --batch-size "
            f"(such as {max(1, batch // 2)}); `pointdistill plan` shows what fits"
        )
        raise ConfigError(msg) from error

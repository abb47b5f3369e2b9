"""``pointdistill plan`` and ``pretrain``: what a run will cost, and the run itself."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointdistill.cli.console import (
    TrainingConsole,
    console_reporter,
    echo,
    name_options,
    print_json,
    print_table,
    training_console,
)
from pointdistill.cli.help import did_you_mean
from pointdistill.cli.options import (
    BatchSizeOption,
    CompileOption,
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
    complete_encoder,
    complete_run,
    require_encoder,
    require_paths,
    run_overrides,
    to_argv,
)
from pointdistill.data.files.workspace import last_corpus
from pointdistill.errors import ConfigError, DataError
from pointdistill.reporter import format_duration, plural

if TYPE_CHECKING:
    from pointdistill.engine.config.settings import RunOverrides
    from pointdistill.engine.planning import Plan
    from pointdistill.engine.pretraining.adapting import Judgement
    from pointdistill.engine.pretraining.launch import PreparedRun
    from pointdistill.engine.pretraining.pretrain import RunResult
    from pointdistill.engine.pretraining.trainer import RunOptions

GIGA, TERA = 1e9, 1e12

SHARDINGS = ("none", "fsdp")
"""As in the engine; repeated here so that a wrong value is refused before torch loads."""

SLOW_SECONDS = 6 * 3600.0
"""A run that is expected to take longer than this on a CPU gets a warning before it starts."""


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
    argv = [*to_argv(overrides), *(["--data", str(data)] if data else [])]
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
        print_json("plan", _plan_record(result) | {"problems": problems, "command": command})
        return
    for name, text in describe(result):
        echo(f"{name:<11} {text}")
    for problem in problems:
        echo(f"problem: {problem}")
    seconds = None if gpu else _cpu_seconds(result, device)
    if seconds is not None and seconds >= SLOW_SECONDS:
        echo(f"next: {_tiny(data)}   (minutes on this CPU; on a GPU: {command})")
    else:
        echo(f"next: {command}")


def _plan_record(plan: Plan) -> dict[str, Any]:
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
        ("corpus", f"{plan.corpus or 'none yet, synthetic'}: {plural(plan.shapes, 'shape')}"),
    ]
    lines += [
        ("licence", f"{name}: {licence} ({plural(shapes, 'shape')})")
        for name, licence, shapes in plan.licences
    ]
    return [
        *lines,
        ("steps", f"{plan.steps:,} of {plural(config.batch_size, 'shape')} ({epochs:.1f} epochs)"),
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
            autocompletion=complete_run,
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
            autocompletion=complete_encoder,
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
    if sharding not in SHARDINGS:
        near = did_you_mean(sharding, SHARDINGS)
        msg = f"sharding must be one of {', '.join(SHARDINGS)}, got {sharding!r}{near}"
        raise ConfigError(msg, settings=("sharding",))
    fresh = not resume and init_from is None and recipe != "adapt"
    if data is None and fresh and last_corpus() is None:
        msg = "no corpus was made in this folder yet; run `pointdistill prepare-data`, or name one"
        raise DataError(msg, settings=("data",))
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
    from pointdistill.engine.pretraining.adapting import is_folder_of_files, read_judgement
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
        if init_from is not None and data is not None and is_folder_of_files(data):
            folder = shlex.quote(str(data))
            reporter.say(
                f"note: if up is y in these files, stop, run `pointdistill prepare-data folder --input {folder} "
                "--up y --output data/up-y`, and train with --data data/up-y"
            )
        if slow := _slow(prepared, options.device):
            reporter.show_line(slow, style="yellow")
        result = _train(prepared, options, reporter)
    if not is_main_process():
        raise typer.Exit(130 if result.interrupted else 0)
    if result.interrupted:
        echo(
            f"stopped after step {result.step} of {result.total}; everything is saved in {result.run}"
        )
        _repeat_warnings(result, prepared)
        echo(f"next: pointdistill pretrain --resume --run {shlex.quote(str(result.run))}")
        raise typer.Exit(130)
    _repeat_warnings(result, prepared)
    judgement = read_judgement(result.run)
    if judgement is not None:
        _print_judgement(judgement, result.run)
    echo(f"{plural(result.total, 'step')} done; the teacher's encoder is in {result.run}/encoder")
    echo(
        "next: pointdistill embed YOUR_FILES   (or: pointdistill evaluate scanobjectnn --stand-in)"
    )


def _slow(prepared: PreparedRun, device: str) -> str | None:
    """A warning if a run on a CPU will take very long, with the command that takes minutes."""
    from pointdistill.engine.pretraining.cost import cpu_seconds
    from pointdistill.engine.runtime.devices import pick_device

    if pick_device(device).type != "cpu":
        return None
    seconds = cpu_seconds(prepared.config, len(prepared.corpus))
    if seconds < SLOW_SECONDS:
        return None
    return (
        f"warning: on this CPU the run takes about {format_duration(seconds)}, by a rough estimate; "
        f"`{_tiny(prepared.corpus.path)}` takes minutes"
    )


def _tiny(corpus: Path | None) -> str:
    """The command of a run that fits a CPU."""
    named = [] if corpus is None else ["--data", str(corpus)]
    return shlex.join(["pointdistill", "pretrain", "--size", "tiny", *named])


def _repeat_warnings(result: RunResult, prepared: PreparedRun) -> None:
    """Print once more what the run warned of, which has scrolled away, with the command of another attempt."""
    from pointdistill.engine.pretraining.monitor import change_after
    from pointdistill.engine.pretraining.run_folder import RUN_CONFIG

    for line in result.warnings:
        echo(f"warning: {line}", err=True)
        change = change_after(line, prepared.config)
        if change is None:
            continue
        command = ["pointdistill", "pretrain", "--config", str(result.run / RUN_CONFIG)]
        command += ["--data", str(prepared.corpus.path), "--set", f"{change[0]}={change[1]:g}"]
        command += [] if prepared.init_from is None else ["--init-from", str(prepared.init_from)]
        echo(f"remedy: {shlex.join(command)}", err=True)


def _print_judgement(judgement: Judgement, run: Path) -> None:
    """Print what the features of the corpus were worth before and after the run."""
    from pointdistill.engine.pretraining.adapting import judgement_rows
    from pointdistill.engine.pretraining.run_folder import JUDGEMENT
    from pointdistill.engine.reports.tables import Table

    notes = [f"{plural(judgement.shapes, 'shape')} of the corpus; kept in {run / JUDGEMENT}."]
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
            f"a step of {plural(batch, 'shape')} does not fit into the memory of this device; give a smaller "
            f"--batch-size (such as {max(1, batch // 2)}); `pointdistill plan` shows what fits"
        )
        raise ConfigError(msg) from error

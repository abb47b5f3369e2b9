"""``pointdistill pretrain``: a run, what it warns of, and what it says at its end."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointdistill.cli.console import (
    TrainingConsole,
    console_reporter,
    echo,
    print_json,
    print_table,
    training_console,
)
from pointdistill.cli.options import (
    UP_AXES,
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
    check_up,
    complete_encoder,
    complete_one_of,
    complete_run,
    one_of,
    require_encoder,
    require_paths,
    run_overrides,
)
from pointdistill.cli.plan import SLOW_SECONDS, tiny_command
from pointdistill.data.files.workspace import last_corpus
from pointdistill.errors import ConfigError, DataError
from pointdistill.reporter import format_duration, plural

if TYPE_CHECKING:
    from pointdistill.engine.config.settings import RunOverrides
    from pointdistill.engine.pretraining.adapting import Judgement
    from pointdistill.engine.pretraining.launch import PreparedRun
    from pointdistill.engine.pretraining.pretrain import RunResult
    from pointdistill.engine.pretraining.trainer import RunOptions

SHARDINGS = ("none", "fsdp")
"""As in the engine; repeated here so that a wrong value is refused before torch loads."""


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
    up: Annotated[
        str | None,
        typer.Option(
            help="With --init-from and a folder of meshes: up axis (x, y, z, -x, -y, -z) of those that do not "
            "state one. Default: z.",
            callback=check_up,
            autocompletion=complete_one_of(*UP_AXES),
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
        typer.Option(
            help="none: each process holds the model; fsdp: each holds a part of it.",
            callback=one_of("sharding", SHARDINGS),
        ),
    ] = "none",
    as_json: JsonOption = False,
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
        up=up,
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
        as_json=as_json,
    )


def _pretrain(
    overrides: RunOverrides,
    *,
    data: Path | None,
    run: Path | None,
    resume: bool,
    init_from: str | None,
    up: str | None,
    options: RunOptions,
    as_json: bool,
) -> None:
    """Start or resume a run, show progress, and print the next command; exits with code 130 if interrupted."""
    from pointdistill.engine.pretraining.adapting import read_judgement
    from pointdistill.engine.pretraining.launch import announce, prepare_resumed_run, prepare_run
    from pointdistill.engine.pretraining.pretrain import check_options, hold_run
    from pointdistill.engine.runtime.devices import is_main_process

    if resume:
        if init_from is not None:
            msg = "--init-from starts a new run and --resume continues one; give one of them"
            raise ConfigError(msg)
        if up is not None:
            msg = "--up is for a new run of a folder of files; a run is resumed with the corpus that it has"
            raise ConfigError(msg)
    check_options(options)  # before a corpus is built
    with ExitStack() as held:
        if resume:
            prepared = prepare_resumed_run(overrides, data=data, run=run)
            held.enter_context(hold_run(prepared.run))
        else:
            with console_reporter() as building:
                start = prepare_run(
                    overrides,
                    data=data,
                    run=run,
                    init_from=init_from,
                    up=up,
                    device=options.device,
                    reporter=building,
                )
                prepared = held.enter_context(start)
        with training_console(quiet=not is_main_process()) as reporter:
            for line in announce(prepared):
                reporter.say(line)
            if slow := _slow(prepared, options.device):
                reporter.show_line(slow, style="yellow")
            result = _train(prepared, options, reporter)
    if not is_main_process():
        raise typer.Exit(130 if result.interrupted else 0)
    warnings = list(_with_remedies(result, prepared))
    for line, remedy in warnings:
        echo(f"warning: {line}", err=True)
        if remedy is not None:
            echo(f"remedy: {remedy}", err=True)
    judgement = read_judgement(result.run)
    if as_json:
        print_json("pretrain", _record(result, prepared, warnings, judgement))
        if result.interrupted:
            raise typer.Exit(130)
        return
    if result.interrupted:
        echo(
            f"stopped after step {result.step} of {result.total}; everything is saved in {result.run}"
        )
        echo(f"next: pointdistill pretrain --resume --run {shlex.quote(str(result.run))}")
        raise typer.Exit(130)
    if judgement is not None:
        _print_judgement(judgement, result.run)
    echo(f"{plural(result.total, 'step')} done; the teacher's encoder is in {result.run}/encoder")
    echo(
        "next: pointdistill embed YOUR_FILES   (or: pointdistill evaluate scanobjectnn --stand-in)"
    )
    name = f"{result.run.resolve().name}-encoder"
    export = ["pointdistill", "export", name, "--encoder", str(result.run)]
    measuring = shlex.join([*export, "--corpus", str(prepared.corpus.path)])
    echo(f"next, for `search`: {measuring}   (measures its features; then --encoder {name})")


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
        f"`{tiny_command(prepared.corpus.path)}` takes minutes"
    )


def _record(
    result: RunResult,
    prepared: PreparedRun,
    warnings: Sequence[tuple[str, str | None]],
    judgement: Judgement | None,
) -> dict[str, Any]:
    """The run as it is now; of the judgement what its table shows, not every shape's neighbours."""
    from pointdistill.engine.pretraining.run_folder import ENCODER

    shown = ("shapes", "neighbours", "classes", "folds", "before", "after", "unchanged")
    return {
        "run": result.run,
        "encoder": result.run / ENCODER,
        "corpus": prepared.corpus.path,
        "finished": not result.interrupted,
        "step": result.step,
        "steps": result.total,
        "loss": result.loss,
        "warnings": [{"warning": line, "remedy": remedy} for line, remedy in warnings],
        "judgement": None
        if judgement is None
        else {name: getattr(judgement, name) for name in shown},
    }


def _with_remedies(result: RunResult, prepared: PreparedRun) -> Iterator[tuple[str, str | None]]:
    """What the run warned of, which has scrolled away, each with the command of another attempt."""
    from pointdistill.engine.pretraining.monitor import change_after
    from pointdistill.engine.pretraining.run_folder import RUN_CONFIG

    for line in result.warnings:
        change = change_after(line, prepared.config)
        if change is None:
            yield line, None
            continue
        command = ["pointdistill", "pretrain", "--config", str(result.run / RUN_CONFIG)]
        command += ["--data", str(prepared.corpus.path), "--set", f"{change[0]}={change[1]:g}"]
        command += [] if prepared.init_from is None else ["--init-from", str(prepared.init_from)]
        yield line, shlex.join(command)


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

"""``pointdistill evaluate``, ``report`` and ``reconstruct``: what encoders and runs have learned."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointdistill.cli.console import console_reporter, echo, print_json, print_table
from pointdistill.cli.options import (
    UP_AXES,
    DeviceOption,
    EncoderOption,
    JsonOption,
    check_up,
    complete_one_of,
    complete_run,
    require_benchmark,
    require_encoder,
    require_own_folder,
    require_paths,
)
from pointdistill.data.benchmarks.registry import ALL_PROTOCOLS, BENCHMARKS
from pointdistill.data.files.workspace import given_or_last_run, last_corpus
from pointdistill.errors import DataError

if TYPE_CHECKING:
    from pointdistill.engine.evaluation.evaluate import Outcome
    from pointdistill.engine.evaluation.leak_check import LeakRequest


class BenchmarkName(StrEnum):
    """Benchmarks that can be measured on."""

    _ignore_ = "name"
    for name in BENCHMARKS:
        vars()[name.upper()] = name
    FOLDER = "folder"
    ALL = "all"


class ProtocolName(StrEnum):
    """Protocols, which say how to measure."""

    _ignore_ = "name"
    for name in ALL_PROTOCOLS:
        vars()[name.upper()] = name
    ALL = "all"


def evaluate(
    benchmark: Annotated[
        BenchmarkName,
        typer.Argument(
            help="What to measure on; folder: your own shapes, see --data; all: every benchmark with data here."
        ),
    ],
    encoder: EncoderOption = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The archive; by default it is looked for under data/. With all: the folder of archives. With "
            "folder: your folder, one sub-folder per class."
        ),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(help="For lvis: the corpus of Objaverse; by default the last one made here."),
    ] = None,
    stand_in: Annotated[
        bool,
        typer.Option(
            "--stand-in", help="Measure on a stand-in of the benchmark's layout, made on first use."
        ),
    ] = False,
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as PB-T50-RS of scanobjectnn or 5w10s of fewshot; again for more. "
            "Default: all; of psb, train."
        ),
    ] = None,
    up: Annotated[
        str | None,
        typer.Option(
            help="Up axis of a folder's files that do not state it. Default: z.",
            callback=check_up,
            autocompletion=complete_one_of(*UP_AXES),
        ),
    ] = None,
    protocol: Annotated[
        list[ProtocolName] | None,
        typer.Option(
            help="How to measure; again for more. Default: on frozen features; finetune for fewshot; "
            "every protocol for the benchmark all."
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many, from 0 on: seeds (default 3), folds of fewshot or draws of lvis (default 10).",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Train shorter than the protocol; every output names it."),
    ] = None,
    votes: Annotated[
        int,
        typer.Option(
            min=1,
            help="Average logits over so many versions of each test cloud; every output says so.",
        ),
    ] = 1,
    hold_out: Annotated[
        float | None,
        typer.Option(
            "--hold-out",
            "--held-out",
            metavar="SHARE",
            help="Share of the training split, such as 0.1, that is not trained on but selects the epoch; every "
            "output says so. Default: none.",
        ),
    ] = None,
    augmented_copies: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Augmented training sets that linear and mlp go through in turn; 0 makes a "
            "new one each epoch, as published. Default: 0 on a GPU, 4 on a CPU.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder that results are added to; by default inside the run."
        ),
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Measure an encoder on a benchmark, the published figures beside ours.

    Every score is kept when it is done: the same command goes on after Ctrl-C, and later ones add to it.
    """
    if benchmark is BenchmarkName.FOLDER:
        require_own_folder(data)
        if up is None:
            line = "note: z is taken as the up axis of files that state none; --up sets another"
            echo(line, err=True)
    if encoder is not None:
        require_encoder(encoder, "encoder")
    # Options that not every benchmark takes are the engine's to judge, before it looks for an archive.
    plain = up is None and hold_out is None and not protocol
    if plain and benchmark.value not in (BenchmarkName.FOLDER.value, BenchmarkName.ALL.value):
        require_benchmark(
            benchmark.value, splits=split or (), data=data, corpus=corpus, stand_in=stand_in
        )

    from pointdistill.engine.evaluation.evaluate import EvaluationRequest, evaluate_saved

    request = EvaluationRequest(
        benchmark=benchmark.value,
        encoder=encoder,
        data=data,
        corpus=corpus,
        stand_in=stand_in,
        splits=tuple(split or ()),
        up=up,
        protocols=tuple(name.value for name in protocol or ()),
        seeds=seeds,
        epochs=epochs,
        votes=votes,
        hold_out=hold_out,
        augmented_copies=augmented_copies,
        output=output,
        device=device,
    )
    with console_reporter() as reporter:
        try:
            outcome = evaluate_saved(request, reporter, leaks_command=leaks_command)
        except KeyboardInterrupt:
            reporter.say("stopped; what is done is kept, the same command goes on from there")
            raise
    if as_json:
        print_json("evaluate", _record(outcome))
        return
    _print(outcome)
    echo(f"next: {_next(benchmark, encoder, stand_in, data, up)}")


def leaks_command(request: LeakRequest) -> str:
    """The command to paste that checks the same benchmark for leaks."""
    command = ["pointdistill", "leaks", request.benchmark, "--encoder", str(request.encoder)]
    return f"`{shlex.join(command)}{' --stand-in' if request.stand_in else ''}`"


def _next(
    measured: BenchmarkName, encoder: str | None, stand_in: bool, data: Path | None, up: str | None
) -> str:
    """The command that comes next, with the options that it shares with this one, on data that is here."""
    named = f" --encoder {shlex.quote(encoder)}" if encoder is not None else ""
    if measured == "folder":
        axis = f" --up {up}" if up is not None else ""
        return f"pointdistill finetune --data {shlex.quote(str(data))}{axis}{named}"
    if measured in ("modelnet40", "all"):
        return f"pointdistill export my-encoder{named}"
    other = "modelnet40" if measured == "scanobjectnn" else "scanobjectnn"
    if stand_in:
        return f"pointdistill evaluate {other}{named} --stand-in"
    try:
        require_benchmark(other)
    except DataError:
        return f"pointdistill embed YOUR_FILES{named}"
    return f"pointdistill evaluate {other}{named}"


def _record(outcome: Outcome) -> dict[str, Any]:
    """The rows of ``results.json``, and where they are."""
    return {
        "results": list(outcome.results),
        "outputs": [str(output) for output in outcome.outputs],
        "absent": list(outcome.absent),
    }


def _print(outcome: Outcome) -> None:
    from pointdistill.engine.evaluation.tables import results_tables

    for table in results_tables(outcome.results):
        print_table(table)
    for reason in outcome.absent:
        echo(f"not measured: {reason}")
    for output in outcome.outputs:
        echo(f"results: {output}/results.json, {output}/results.md")


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN…",
            autocompletion=complete_run,
            help="Run folders, at most six. Default: the last run made in this folder.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Page to write. Default: report.html in the run; in this folder for several runs.",
        ),
    ] = None,
    probe: Annotated[
        str,
        typer.Option(
            help="Labelled shapes to search and colour: builtin, a corpus with labels, or a benchmark's archive."
        ),
    ] = "builtin",
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Write one page about runs: learning curves, online probe, scores, neighbours, features as colours.

    Scores are those that `evaluate` left in the runs' folders. The page is one file
    that loads nothing and can be sent around.
    """
    require_paths(runs or [])
    chosen = runs or [Path(given_or_last_run(None, what="a run", settings=()))]

    from pointdistill.engine.run_report import ReportRequest
    from pointdistill.engine.run_report import report as write

    first = shlex.quote(str(chosen[0]))
    next_steps = (
        (
            f"pointdistill evaluate scanobjectnn --stand-in --encoder {first}",
            "Scores for this page, measured once.",
        ),
        (f"pointdistill embed my-meshes --encoder {first}", "Features of your own shapes."),
        (f"pointdistill export my-encoder --encoder {first}", "The encoder as a folder to share."),
    )
    request = ReportRequest(
        runs=tuple(chosen), output=output, probe=probe, device=device, next_steps=next_steps
    )
    with console_reporter() as reporter:
        page = write(request, reporter=reporter)
    if as_json:
        print_json("report", {"page": page, "runs": chosen, "probe": probe})
        return
    echo(f"page: {page}, open it in a browser")


def reconstruct(
    encoder: EncoderOption = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Corpus folder; by default the last one made in this folder."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of each decoder. Default: 1000.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs with seeds 0, 1, ...; mean and deviation are printed.")
    ] = 1,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for results.json and the picture; by default inside the run.",
        ),
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Reconstruct masked patches from frozen features, and from random ones for comparison; draw both.

    Ctrl-C keeps what is finished.
    """
    require_paths([data], "data")
    require_encoder(encoder, "encoder")
    if data is None and encoder is None and last_corpus() is None:
        msg = "no corpus was made in this folder yet; run `pointdistill prepare-data`, or name one"
        raise DataError(msg, settings=("data",))

    from pointdistill.engine.reconstruction.reconstruct import PICTURE, RESULTS, ReconstructRequest
    from pointdistill.engine.reconstruction.reconstruct import reconstruct as run

    request = ReconstructRequest(
        encoder=encoder, data=data, steps=steps, seeds=seeds, output=output, device=device
    )
    with console_reporter() as reporter:
        result = run(request, reporter=reporter)
    if as_json:
        files = {"results": result.output / RESULTS, "picture": result.output / PICTURE}
        found = {"outcomes": list(result.outcomes), "interrupted": result.interrupted}
        print_json("reconstruct", found | files)
        if result.interrupted:
            raise typer.Exit(130)
        return
    if result.outcomes:
        print_table(result.table())
    if result.interrupted:
        echo(f"stopped; what is finished is in {result.output}, the same command continues")
        raise typer.Exit(130)
    echo(f"results: {result.output / RESULTS}; picture: {result.output / PICTURE}")
    encoder_option = "" if encoder is None else f" --encoder {shlex.quote(encoder)}"
    echo(f"next: pointdistill export my-encoder{encoder_option}")

"""``pointdistill evaluate``: an encoder on labelled benchmarks."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointdistill.cli.console import (
    console_reporter,
    echo,
    print_json,
    print_table,
)
from pointdistill.cli.options import (
    UP_AXES,
    DeviceOption,
    EncoderOption,
    JsonOption,
    check_up,
    complete_one_of,
    require_benchmark,
    require_encoder,
    require_own_folder,
)
from pointdistill.data.benchmarks.registry import ALL_PROTOCOLS, BENCHMARKS

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
        typer.Option(help="Folder that results are added to; by default inside the run."),
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
    echo(f"next: {_next(benchmark, encoder, stand_in, data)}")


def leaks_command(request: LeakRequest) -> str:
    """The command to paste that checks the same benchmark for leaks."""
    command = ["pointdistill", "leaks", request.benchmark, "--encoder", str(request.encoder)]
    return f"`{shlex.join(command)}{' --stand-in' if request.stand_in else ''}`"


def _next(measured: BenchmarkName, encoder: str | None, stand_in: bool, data: Path | None) -> str:
    """The command that comes next, with the options that it shares with this one."""
    named = f" --encoder {shlex.quote(encoder)}" if encoder is not None else ""
    if measured == "folder":
        return f"pointdistill finetune --data {shlex.quote(str(data))}{named}"
    if measured in ("modelnet40", "all"):
        return f"pointdistill export my-encoder{named}"
    other = "modelnet40" if measured == "scanobjectnn" else "scanobjectnn"
    return f"pointdistill evaluate {other}{named}{' --stand-in' if stand_in else ''}"


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

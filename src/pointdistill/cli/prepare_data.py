"""``pointdistill prepare-data``: a corpus to pretrain on."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pointdistill.cli.console import (
    console_reporter,
    echo,
    print_json,
)
from pointdistill.cli.options import (
    UP_AXES,
    JsonOption,
    check_up,
    complete_one_of,
    complete_source,
)
from pointdistill.errors import ConfigError
from pointdistill.reporter import plural

if TYPE_CHECKING:
    from pointdistill.data.corpus_building import BuildReport, BuildSettings, ShapeLimits
    from pointdistill.data.corpus_building.source_status import MixtureRequest

_BUILTIN = "builtin"
_FOLDER = "folder"
_MIXTURE = "mixture"
_PSB = "psb"
_MOST_CAUSES = 5


def prepare_data(
    source: Annotated[
        str,
        typer.Argument(
            help="builtin (objects made on the spot), folder (your own meshes and clouds), mixture "
            "(all archives in a folder as one corpus), or an archive: "
            "shapenetcore, 3d-future, scanobjectnn, modelnet40, s3dis, sunrgbd, abo, "
            "omniobject3d, toys4k, google-scanned-objects, objaverse-cap3d, objaverse-xl-cap3d, objaverse. "
            "psb is a benchmark, and can only be fetched.",
            autocompletion=complete_source,
        ),
    ] = _BUILTIN,
    path: Annotated[
        Path | None,
        typer.Option(
            "--input",
            "--archive",
            "--archives",
            help="The archive, or the folder that holds it; or your folder of files.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Corpus folder. Default: data/ and the source's name."),
    ] = None,
    points: Annotated[
        int, typer.Option(help="Points per shape; a cloud with fewer keeps all.", min=32)
    ] = 16_384,
    shapes: Annotated[
        int | None,
        typer.Option(help="Number of shapes that builtin makes. Default: 10,000.", min=1),
    ] = None,
    procedural: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share (0 to 1) of builtin's shapes that are procedural: random parts combined at random, "
            "without a category. Default: 0.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same corpus.", min=0)] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Worker processes; 0 works without any, but cannot enforce --deadline and --memory. "
            "Default: one per core.",
            min=0,
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Address of a dask scheduler, such as tcp://host:8786, whose workers do the work."
        ),
    ] = None,
    deadline: Annotated[
        float, typer.Option(help="Seconds after which a shape is given up.")
    ] = 300.0,
    memory: Annotated[
        float | None,
        typer.Option(
            help="GiB that each process may use (Linux only). Default: 3/4 of the memory, shared by the processes."
        ),
    ] = None,
    retry: Annotated[
        bool,
        typer.Option(
            "--retry",
            help="Read shapes again that exceeded the deadline or memory limit, or crashed.",
        ),
    ] = False,
    up: Annotated[
        str | None,
        typer.Option(
            help="Up axis (x, y, z, -x, -y, -z) of your files that do not state one. Default: z.",
            callback=check_up,
            autocompletion=complete_one_of(*UP_AXES),
        ),
    ] = None,
    include_test: Annotated[
        bool,
        typer.Option("--include-test", help="Include a benchmark's test split; recorded."),
    ] = False,
    drop_removed: Annotated[
        bool,
        typer.Option(
            "--drop-removed",
            help="folder: shapes whose files are gone leave the finished corpus. Default: an error.",
        ),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="mixture: show what is there and what it will cost, and stop."),
    ] = False,
    fetch: Annotated[
        bool,
        typer.Option("--fetch", help="mixture, psb: download what needs no login, and stop."),
    ] = False,
    sources: Annotated[
        str | None,
        typer.Option(
            help="mixture: sources to use, separated by commas. Default: all that are there."
        ),
    ] = None,
    take_tests: Annotated[
        str | None,
        typer.Option(
            help="mixture: sources whose test split is included: modelnet40,scanobjectnn. Default: none."
        ),
    ] = None,
    exclude_tests: Annotated[
        str | None,
        typer.Option(
            help="mixture: all leaves out the test shapes of ShapeNetPart and LVIS too; needs their lists."
        ),
    ] = None,
    commercial_only: Annotated[
        bool,
        typer.Option(
            "--commercial-only",
            help="mixture: only sources whose licence allows commercial use; recorded.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a corpus of surface points to pretrain on; if stopped at any time, the same command continues.

    Shapes that cannot be used are left out and listed in refused.jsonl in the corpus; those that were
    given up before they were read can be tried again with --retry.
    """
    from pointdistill.data.corpus_building import BuildSettings
    from pointdistill.data.corpus_building.prepare import DATA_FOLDER, prepare_corpus
    from pointdistill.data.sources import SourceRequest
    from pointdistill.data.sources.builtin import DEFAULT_SHAPES

    if source == _PSB:
        build_options = {
            "--output": output,
            "--shapes": shapes,
            "--procedural": procedural,
            "--up": up,
            "--retry": retry,
            "--include-test": include_test,
            "--drop-removed": drop_removed,
            "--plan": plan,
            "--sources": sources,
            "--take-tests": take_tests,
            "--exclude-tests": exclude_tests,
            "--json": as_json,
        }
        _refuse(build_options, f"{_PSB}; it can only be fetched, and no corpus is made of it")
        _fetch_benchmark(source, path, fetch=fetch)
        return
    settings = BuildSettings(
        points=points,
        seed=seed,
        workers=workers,
        limits=_limits(deadline, memory),
        cluster=cluster,
    )
    if cluster is not None:
        _refuse({"--workers": workers}, "--cluster; each thread of its workers is one")
    mixture_options = {
        "--plan": plan,
        "--fetch": fetch,
        "--sources": sources,
        "--take-tests": take_tests,
        "--exclude-tests": exclude_tests,
        "--commercial-only": commercial_only,
    }
    if source == _MIXTURE:
        other_options = {
            "--shapes": shapes,
            "--procedural": procedural,
            "--up": up,
            "--include-test": include_test,
            "--drop-removed": drop_removed,
        }
        _refuse(other_options, f"{_MIXTURE}; for test splits name the source with --take-tests")
        _check_combination(plan=plan, fetch=fetch, retry=retry, cluster=cluster)
        if fetch:
            _refuse({"--json": as_json}, "--fetch, which prints a line for each file")
        mixture = _mixture_request(
            path, sources, take_tests, exclude_tests, commercial_only=commercial_only
        )
        _mixture(
            mixture,
            output,
            settings,
            retry=retry,
            plan=plan,
            fetch=fetch,
            options=_typed(output, points, seed, workers, deadline, memory),
            as_json=as_json,
        )
        return
    _refuse(mixture_options, f"{source}; it is for {_MIXTURE}")
    if source != _FOLDER:
        _refuse({"--drop-removed": drop_removed}, f"{source}; it is for {_FOLDER}")
    up_axis = up.lower() if up is not None else None
    request = SourceRequest(
        path=path, shapes=shapes, procedural=procedural, up=up_axis, include_test=include_test
    )
    if source == _BUILTIN and shapes is None:
        echo(
            f"note: making {DEFAULT_SHAPES:,} builtin shapes in {output or DATA_FOLDER / source}; --shapes makes "
            "fewer, `pointdistill prepare-data folder --input YOUR_FILES` takes your own",
            err=True,
        )
    try:
        with console_reporter() as reporter:
            prepared = prepare_corpus(
                source,
                request,
                output=output,
                settings=settings,
                retry=retry,
                drop_removed=drop_removed,
                reporter=reporter,
            )
    except KeyboardInterrupt:
        _stopped()
    _print(prepared.report, prepared.facts.name, retry=retry, as_json=as_json)


def _fetch_benchmark(name: str, folder: Path | None, *, fetch: bool) -> None:
    """Download a benchmark that is no source of a corpus.

    Raises:
        ConfigError: if it is not to be downloaded: no corpus is made of it.
    """
    from pointdistill.data.benchmarks.registry import fetch_benchmark

    if not fetch:
        msg = (
            f"{name} is a benchmark to measure on, and no corpus is made of it; --fetch downloads it, and "
            f"`pointdistill evaluate {name}` measures on it"
        )
        raise ConfigError(msg)
    if folder is not None and folder.is_file():
        msg = f"{folder} is a file; give the folder that the archive goes to"
        raise ConfigError(msg)
    try:
        with console_reporter() as reporter:
            archive = fetch_benchmark(name, data=folder, reporter=reporter)
    except KeyboardInterrupt:
        _stopped()
    echo(f"next: {shlex.join(['pointdistill', 'evaluate', name, '--data', str(archive)])}")


def _check_combination(*, plan: bool, fetch: bool, retry: bool, cluster: str | None) -> None:
    """Raise if a mixture is to be built by a command that only plans or downloads."""
    build_options: dict[str, object] = {"--retry": retry, "--cluster": cluster}
    if plan:
        reason = "--plan, which only says what there is; leave one of the two out"
        _refuse({"--fetch": fetch} | build_options, reason)
    if fetch:
        _refuse(build_options, "--fetch, which only downloads; leave one of the two out")


def _typed(
    output: Path | None,
    points: int,
    seed: int,
    workers: int | None,
    deadline: float,
    memory: float | None,
) -> tuple[str, ...]:
    """The options that the next command must repeat: those that differ from their defaults."""
    from pointdistill.data.corpus_building.build import DEFAULT_POINTS
    from pointdistill.data.corpus_building.limits import ShapeLimits

    values = {
        "--output": output,
        "--points": points if points != DEFAULT_POINTS else None,
        "--seed": seed or None,
        "--workers": workers,
        "--deadline": deadline if deadline != ShapeLimits().deadline_seconds else None,
        "--memory": memory,
    }
    chosen = ((option, value) for option, value in values.items() if value is not None)
    return tuple(
        word
        for option, value in chosen
        for word in (option, f"{value:.12g}" if isinstance(value, float) else str(value))
    )


def _limits(deadline: float, memory: float | None) -> ShapeLimits:
    from pointdistill.data.corpus_building.limits import ShapeLimits
    from pointdistill.data.files.processes import GIB

    if memory is None:
        return ShapeLimits(deadline_seconds=deadline)
    if not math.isfinite(memory):
        msg = f"--memory must be a number of GiB, got {memory}; leave it out for a share of the memory"
        raise ConfigError(msg)
    return ShapeLimits(deadline_seconds=deadline, memory_bytes=int(memory * GIB))


def _mixture(
    request: MixtureRequest,
    output: Path | None,
    settings: BuildSettings,
    *,
    retry: bool,
    plan: bool,
    fetch: bool,
    options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Plan, fetch for, or build a mixture."""
    from pointdistill.cli.prepare_mixture import fetch_archives, prepare_mixture, show_plan
    from pointdistill.data.corpus_building.prepare import DATA_FOLDER
    from pointdistill.data.files.workspace import remember_corpus

    corpus = output or DATA_FOLDER / _MIXTURE
    try:
        if fetch:
            fetch_archives(request, options)
        elif plan:
            show_plan(request, corpus, settings, options, as_json=as_json)
        else:
            report = prepare_mixture(request, corpus, settings, retry=retry)
            remember_corpus(report.path)
            _print(report, f"the {_MIXTURE}", retry=retry, as_json=as_json)
    except KeyboardInterrupt:
        _stopped()


def _mixture_request(
    path: Path | None,
    sources: str | None,
    take_tests: str | None,
    exclude_tests: str | None,
    *,
    commercial_only: bool,
) -> MixtureRequest:
    from pointdistill.data.corpus_building.source_status import MixtureRequest

    if path is None:
        msg = f"{_MIXTURE} needs the folder that holds the archives; give it with --archives"
        raise ConfigError(msg)
    if path.is_file():
        msg = f"{path} is a file; give the folder that holds the archives: --archives {path.parent}"
        raise ConfigError(msg)
    if exclude_tests not in (None, "all"):
        msg = f"--exclude-tests accepts all, got {exclude_tests!r}"
        raise ConfigError(msg)
    return MixtureRequest(
        archives=path,
        sources=_names(sources),
        take_tests=_names(take_tests),
        exclude_all_tests=exclude_tests is not None,
        commercial_only=commercial_only,
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _refuse(options: Mapping[str, object], reason: str) -> None:
    """Raise if one of these options was used, which has no meaning here."""
    for option, value in options.items():
        if value is not None and value is not False:  # 0 is a value too
            msg = f"{option} has no meaning for {reason}"
            raise ConfigError(msg)


def _stopped() -> NoReturn:
    echo("stopped; what is done is kept, the same command goes on from there", err=True)
    raise typer.Exit(130) from None


def _record(report: BuildReport, name: str) -> dict[str, Any]:
    return {
        "corpus": report.path,
        "source": name,
        "kept": report.kept,
        "refused": report.refused,
        "causes": list(report.causes),
        "retryable": report.retryable,
        "retried": report.retried,
        "recovered": report.recovered,
        "resumed": report.resumed,
        "was_complete": report.was_complete,
    }


def _print(report: BuildReport, name: str, *, retry: bool, as_json: bool) -> None:
    if as_json:
        print_json("prepare-data", _record(report, name))

    for line in _refused_lines(report):
        echo(line, err=True)
    if retry and not report.retried and not report.retryable:
        final = f"{plural(report.refused, 'shape')} {'was' if report.refused == 1 else 'were'} refused for good"
        echo(f"nothing is retryable, so nothing was read again; {final}", err=True)
    if report.resumed:
        echo(f"went on from {plural(report.resumed, 'shape')} already there", err=True)
    if as_json:
        return
    state = "was complete already" if report.was_complete else "is complete"
    echo(f"{report.path} {state}: {plural(report.kept, 'shape')} of {name}")
    echo("next: pointdistill pretrain --size tiny   (on a GPU: --size small)")


def _refused_lines(report: BuildReport) -> Iterator[str]:
    """What was refused, by cause, and what to do about it."""
    if report.retried:
        read = f"{plural(report.retried, 'shape')} {'was' if report.retried == 1 else 'were'} read again"
        yield f"{read}, {report.recovered:,} of them can be used"
    causes = sorted(report.causes, key=lambda cause: -cause.shapes)
    for cause in causes[:_MOST_CAUSES]:
        alike = f" (and {cause.shapes - 1:,} like it)" if cause.shapes > 1 else ""
        yield f"refused: {cause.example_id}: {cause.example}{alike}"
    if len(causes) > _MOST_CAUSES:
        rest = causes[_MOST_CAUSES:]
        shapes = sum(cause.shapes for cause in rest)
        yield f"refused: {shapes:,} more for {len(rest):,} other causes; `pointdistill inspect` has them"
    if report.refused:
        failed = (
            f"{report.refused:,} of {plural(report.kept + report.refused, 'shape')} "
            f"{'was' if report.refused == 1 else 'were'} refused"
        )
        yield f"{failed}; all are listed in {report.path}/refused.jsonl"
    if report.retryable:
        named = ", ".join(f"{name} {count:,}" for name, count in report.retryable.items())
        yield (
            f"{sum(report.retryable.values()):,} of them are retryable ({named}); the same command "
            f"with --retry reads them again, with a larger --deadline or --memory where you give one"
        )

"""``pointdistill embed`` and ``search``: features of any shapes in one file, and the nearest shapes in it."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
import time
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointdistill.cli.console import (
    confirm,
    console_reporter,
    echo,
    print_json,
    print_table,
    say_refused,
)
from pointdistill.cli.options import (
    UP_AXES,
    DeviceOption,
    EncoderOption,
    JsonOption,
    check_up,
    complete_encoder,
    complete_one_of,
    require_encoder,
    require_paths,
)
from pointdistill.data.files.files import short_name
from pointdistill.data.files.workspace import (
    check_not_lost,
    last_embedding,
)
from pointdistill.errors import (
    ConfigError,
    DataError,
)
from pointdistill.reporter import (
    plural,
)

if TYPE_CHECKING:
    from pointdistill.engine.embedding.embed import EmbedReport
    from pointdistill.engine.embedding.search import SearchReport, SearchResult
    from pointdistill.engine.reports.tables import Table

MOST_SHOWN = 20
"""Most refused shapes to print; all of them are recorded in the output."""


OUTPUT_SUFFIXES = (".npz", ".parquet")
"""As in the engine; repeated here so that a wrong ending is refused before torch loads."""


class FeatureName(StrEnum):
    """Kinds of features; repeated here so that ``--help`` does not load torch."""

    MOMENTS = "moments"
    POOLED = "pooled"
    CLS = "cls"
    PATCHES = "patches"
    POINTS = "points"


class StoredTypeName(StrEnum):
    """Types that features are stored in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


def embed(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Mesh and point files, folders, zips, corpora.", metavar="PATH…"),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .npz or .parquet.")
    ] = Path("embedding.npz"),
    encoder: EncoderOption = None,
    features: Annotated[
        FeatureName,
        typer.Option(
            help="One vector per shape (moments: CLS, and mean, deviation and skew of the patches; pooled: CLS, "
            "mean and max; or cls), per patch, or per point."
        ),
    ] = FeatureName.MOMENTS,
    points: Annotated[
        int | None,
        typer.Option(help="Points sampled from each shape. Default: as in pretraining.", min=1),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(
            help="Samplings to average over at each angle. Default: as many as make 8,192 points in all, "
            "or 4,096 for encoders of 1,024 points and more.",
            min=1,
        ),
    ] = None,
    turns: Annotated[
        int | None,
        typer.Option(
            help="Angles about the vertical axis to average over. Default: 8, or as many as there are samplings.",
            min=1,
        ),
    ] = None,
    dtype: Annotated[
        StoredTypeName, typer.Option(help="Type of the stored features; float16 halves the file.")
    ] = StoredTypeName.FLOAT32,
    seed: Annotated[int, typer.Option(help="Seed of the points that are sampled.", min=0)] = 0,
    up: Annotated[
        str | None,
        typer.Option(
            help="Up axis (x, y, z, -x, -y, -z) of your files that do not state one. Default: z.",
            callback=check_up,
            autocompletion=complete_one_of(*UP_AXES),
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Clouds per forward pass; it does not change the features.", min=1),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace an output that was made of other files or settings."
        ),
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Address of a dask scheduler, such as tcp://host:8786, whose workers do the work."
        ),
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Compute features of every shape in files, folders, zips and corpora, into one .npz or Parquet file.

    If it is stopped, the same command continues. Files that cannot be used are
    listed and the others are embedded; the exit code is then 2.
    """
    require_paths(paths)
    if output.suffix.lower() not in OUTPUT_SUFFIXES:
        msg = f"the output must end in {' or '.join(OUTPUT_SUFFIXES)}, got {str(output)!r}"
        raise ConfigError(msg, settings=("output",))
    require_encoder(encoder, "encoder")

    from pointdistill.engine.embedding.embed import EmbedRequest
    from pointdistill.engine.embedding.embed import embed as run

    request = EmbedRequest(
        paths=paths,
        output=output,
        encoder=encoder,
        features=features.value,
        points=points,
        draws=draws,
        turns=turns,
        seed=seed,
        dtype=dtype.value,
        up=up or "z",
        batch_size=batch_size,
        overwrite=overwrite,
        cluster=cluster,
        device=device,
    )
    began = time.perf_counter()
    with console_reporter() as reporter:
        report = run(request, reporter=reporter)
    if as_json:
        print_json("embed", _embed_record(report, features, time.perf_counter() - began))
    _print(report, features, paths, up, as_json=as_json)


def _embed_record(report: EmbedReport, features: FeatureName, seconds: float) -> dict[str, Any]:
    return {
        "output": report.output,
        "features": features.value,
        "shapes": report.shapes,
        "total": report.total,
        "failed": [{"id": name, "reason": reason} for name, reason in report.failed],
        "left_out": {"files": report.left_out.files, "kinds": report.left_out.kinds},
        "assumed_up": report.assumed_up,
        "interrupted": report.interrupted,
        "was_complete": report.was_complete,
        "seconds": seconds,
    }


def _place(paths: list[Path], name: str) -> str:
    """A shape of the inputs by its path: ids lack the folder if there is a single one."""
    if len(paths) > 1 or (paths[0].name == name and not paths[0].is_dir()):
        return name if len(paths) > 1 else str(paths[0])
    return f"{paths[0]}/{name}"


def _print(
    report: EmbedReport,
    features: FeatureName,
    paths: list[Path],
    up: str | None,
    *,
    as_json: bool = False,
) -> None:
    if report.is_helper:  # the first of the processes says it all
        raise typer.Exit(130 if report.interrupted else 0)
    if report.interrupted:
        echo(
            f"stopped with {report.shapes:,} of {plural(report.total, 'shape')} done and saved; "
            "the same command continues from there",
            err=True,
        )
        raise typer.Exit(130)
    if report.assumed_up and up is None:
        echo(
            f"note: z was taken as the up axis of {plural(report.assumed_up, 'file')} without a stated one; "
            "use --up y if theirs is y",
            err=True,
        )
    if line := report.left_out.line():
        echo(line, err=True)
    for name, reason in report.failed[:MOST_SHOWN]:
        say_refused(_place(paths, name), reason)
    if report.failed:
        were, them = ("was", "it") if len(report.failed) == 1 else ("were", "them")
        failed = f"{len(report.failed):,} of {plural(report.total, 'shape')} {were} not embedded"
        echo(f"{failed}; {report.output} lists {them}" if report.shapes else failed, err=True)
    if report.shapes and not as_json:
        state = ", complete already" if report.was_complete else ""
        echo(
            f"{report.output}: {features.value} features of {plural(report.shapes, 'shape')}{state}"
        )
        if features not in (FeatureName.PATCHES, FeatureName.POINTS):
            echo(f"next: pointdistill search FILE {shlex.quote(str(report.output))}")
    if report.failed:
        raise typer.Exit(2)


INDEX_SUFFIXES = (".npz", ".parquet", ".zip", ".tar", ".tgz", ".tar.gz")
"""Endings of a last path that names what is searched, as a folder does, and not another query."""

_LONGEST_NAME = 200
"""Bytes of a picture's name before its ending; file systems take 255."""


def search(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="QUERY… [INDEX]",
            help="Mesh or point files; then a file that `embed` wrote, or a folder, archive or corpus "
            "embedded here. Default: the last one.",
        ),
    ],
    index: Annotated[
        Path | None,
        typer.Option(help="The index. Every path is then a query, also one that ends in .npz."),
    ] = None,
    count: Annotated[int, typer.Option(help="Number of shapes to find.", min=1)] = 10,
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="Picture to write. Default: the query's name, with its folders, and -neighbours.png; "
            "neighbours.png for several."
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="The encoder that made the index, if it has moved since.",
            autocompletion=complete_encoder,
        ),
    ] = None,
    up: Annotated[
        str | None,
        typer.Option(
            help="Up axis of a query that does not state its own. Default: as in the index.",
            callback=check_up,
            autocompletion=complete_one_of(*UP_AXES),
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON document instead; a picture only if --sheet is given."
        ),
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Find the shapes of an embedding most similar to one or several files, by cosine similarity of features.

    The query's own file in the index, by its path or its bytes, is not counted.
    A copy under another name has a similarity below 1, often 0.95: the points that
    are sampled depend on the file's name.

    Queries that cannot be read are listed and the others are answered; the exit code
    is then 2.
    """
    queries, index = _queries_and_index(paths, index)
    picture = sheet or _default_sheet(queries)
    if picture.suffix.lower() != ".png":
        msg = f"the sheet must end in .png, got {str(picture)!r}"
        raise ConfigError(msg, settings=("sheet",))
    queries, missing = _split_missing(queries, index)
    if index is None and last_embedding() is None:
        check_not_lost()
        msg = (
            "no embedding was made in this folder yet; run `pointdistill embed` first, or name the file that it "
            "wrote"
        )
        raise DataError(msg)
    if encoder is not None:
        require_encoder(encoder, "encoder")

    from pointdistill.engine.embedding.index import is_embedding, open_index
    from pointdistill.engine.embedding.search import (
        draw_sheet,
        find_index,
        new_files,
        search_all,
    )

    for query in queries:
        if is_embedding(query):
            msg = f"{query} is an index that `embed` wrote, no shape; put it last, or name it with --index"
            raise ConfigError(msg)
    found = find_index(index)
    if os.path.realpath(picture) in {os.path.realpath(path) for path in (*queries, found)}:
        msg = f"{picture} is or leads to an input, which would be overwritten; name another sheet"
        raise ConfigError(msg, settings=("sheet",))
    opened = open_index(found)
    if new := new_files(opened):
        are = "is" if new == 1 else "are"
        line = f"the index is older than the folder: {plural(new, 'file')} {are} not in it"
        echo(f"{line}; `pointdistill embed … --overwrite` adds them", err=True)
    with console_reporter() as reporter:
        report = search_all(
            queries,
            opened,
            count=count,
            encoder=encoder,
            up=up,
            device=device,
            others_only=True,
            may_fetch=_ask,
            reporter=reporter,
        )
    report = replace(report, failed=(*report.failed, *missing))
    echo(f"similarity: cosine of {report.compared}", err=True)
    assumed = [str(result.path) for result in report.results if result.assumed_up]
    if assumed and up is None:
        who = (
            f"{assumed[0]} does not state its"
            if len(assumed) == 1
            else "queries do not state their"
        )
        axis = report.results[0].settings.up
        echo(
            f"note: {who} up axis, so {axis} was assumed as for the index; --up sets another",
            err=True,
        )
    if as_json:
        print_json("search", _search_record(opened.path, report))
    else:
        for result in report.results:
            print_table(_table(opened.path, result))
    for path, reason in report.failed:
        say_refused(path, reason)
    if report.results and (sheet is not None or not as_json):
        not_drawn = draw_sheet(picture, report.results, compared=report.compared)
        for name, reason in not_drawn.items():
            echo(f"note: not drawn: {name}: {reason}", err=True)
        echo(f"picture: {picture}", err=as_json)
    if report.failed:
        raise typer.Exit(2)


def _default_sheet(queries: list[Path]) -> Path:
    """The picture's name: with the query's folders, since files of many folders may be called alike."""
    if len(queries) > 1:
        return Path("neighbours.png")
    query = short_name(Path(os.path.normpath(queries[0])))
    name = "__".join("up" if part == ".." else part for part in (*query.parent.parts, query.stem))
    encoded = os.fsencode(name)
    if len(encoded) > _LONGEST_NAME:
        digest = hashlib.sha256(encoded).hexdigest()[:8]
        name = f"{encoded[:_LONGEST_NAME].decode(errors='ignore')}-{digest}"
    return Path(f"{name}-neighbours.png")


def _ask(name: str) -> bool:
    """Ask on a terminal; without one, nothing is fetched."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    return confirm(f"the index names the encoder {name}; download it from the Hugging Face Hub?")


def _queries_and_index(paths: list[Path], index: Path | None) -> tuple[list[Path], Path | None]:
    """The files to look for, and where; None for the last embedding made here."""
    last = paths[-1]
    if (
        index is None
        and len(paths) > 1
        and (last.is_dir() or last.name.lower().endswith(INDEX_SUFFIXES))
    ):
        return paths[:-1], last
    return paths, index


def _split_missing(
    queries: list[Path], index: Path | None
) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The queries that there are, and each other one with a line that says so.

    Raises:
        DataError: if there is none at all, or no index of this name.
    """
    from pointdistill.data.meshes.read import is_shape_name

    require_paths([index])
    if index is None and not is_shape_name(queries[-1].name):
        require_paths(queries[-1:])  # rather a misspelled folder to search in than a query
    missing: list[tuple[Path, str]] = []
    for query in queries:
        try:
            require_paths([query])
        except DataError as error:
            missing.append((query, str(error).removeprefix(f"{query}: ")))
    if len(missing) == len(queries):
        require_paths(queries)
    gone = {path for path, _ in missing}
    return [query for query in queries if query not in gone], missing


def _table(index: Path, result: SearchResult) -> Table:
    from pointdistill.engine.reports.tables import Table

    rows = tuple(
        (str(rank), neighbour.id, f"{neighbour.similarity:.4f}")
        for rank, neighbour in enumerate(result.neighbours, start=1)
    )
    own = result.own
    note = (
        ""
        if own is None
        else f"{own.id} is the query itself ({own.similarity:.4f}), and not counted"
    )
    title = f"Nearest to {result.path} in {index}"
    return Table(title, ("rank", "shape", "similarity"), rows, (note,) if note else ())


def _search_record(index: Path, report: SearchReport) -> dict[str, Any]:
    return {
        "index": str(index),
        "similarity": f"cosine of {report.compared}",
        "queries": [
            {
                "query": str(result.path),
                "own": None
                if result.own is None
                else {"id": result.own.id, "similarity": result.own.similarity},
                "neighbours": [
                    {"id": neighbour.id, "similarity": neighbour.similarity}
                    for neighbour in result.neighbours
                ],
            }
            for result in report.results
        ],
        "failed": [{"query": str(path), "reason": reason} for path, reason in report.failed],
    }

"""``pointdistill predict``: applies a fine-tuned model to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointdistill.cli.console import console_reporter, echo, echo_lines, print_table
from pointdistill.cli.options import DeviceOption, require_paths
from pointdistill.errors import ConfigError

if TYPE_CHECKING:
    from pointdistill.data.meshes import FailedFile
    from pointdistill.engine.finetuning.models import TrainedClassifier, TrainedSegmenter
    from pointdistill.engine.finetuning.predict import ClassifiedFile, SegmentedFile

SHOWN = 3


def predict(
    model: Annotated[Path, typer.Argument(help="Folder that `finetune` wrote.")],
    files: Annotated[list[Path], typer.Argument(help="Mesh or point files.", metavar="FILE…")],
    category: Annotated[
        str | None, typer.Option(help="Category of the files; a segmenter needs it.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="For a segmenter: a folder (one coloured .ply for each file), an archive.npz, or one .ply.",
        ),
    ] = None,
    up: Annotated[
        str | None,
        typer.Option(
            help="Up axis (x, y, z, -x, -y, -z) of files that do not state it. Default: the training data's."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON on stdout.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Name shapes with a classifier, or their parts with a segmenter.

    Files that cannot be used are listed and the others are done; the exit code
    is then 2.
    """
    require_paths([model])

    from pointdistill.engine.finetuning.models import TrainedClassifier, load_model
    from pointdistill.engine.runtime.devices import pick_device

    torch_device = pick_device(device)
    loaded = load_model(model)
    if isinstance(loaded, TrainedClassifier):
        if category is not None or output is not None:
            msg = f"{model} is a classifier; --category and --output are for a segmenter, leave them out"
            raise ConfigError(msg)
        failed = _classify(loaded.to(torch_device), files, up, as_json)
    else:
        failed = _segment(loaded.to(torch_device), files, category, output, up, as_json)
    if failed:
        raise typer.Exit(2)


def _classify(
    classifier: TrainedClassifier, files: Sequence[Path], up: str | None, as_json: bool
) -> bool:
    """Print the classes of the files; returns whether any file could not be used."""
    from pointdistill.engine.finetuning.predict import classify_files
    from pointdistill.engine.reports.tables import Table

    with console_reporter() as reporter:
        done, failed = classify_files(classifier, files, up=up, reporter=reporter)
    if as_json:
        _print_json([_class_row(file) for file in done])
    elif done:
        places = ("class", "second", "third")[: min(SHOWN, len(classifier.classes))]
        rows = tuple(
            (
                str(file.source),
                *(f"{name} {100 * p:.1f} %" for name, p in file.probabilities[:SHOWN]),
            )
            for file in done
        )
        print_table(Table("Classes of the files", ("file", *places), rows))
    _remark(done, failed, up or classifier.spec.input.up)
    return bool(failed)


def _segment(
    segmenter: TrainedSegmenter,
    files: Sequence[Path],
    category: str | None,
    output: Path | None,
    up: str | None,
    as_json: bool,
) -> bool:
    """Print and write the parts of the files; returns whether any file could not be used."""
    from pointdistill.engine.finetuning.predict import plan_parts, segment_files, write_parts
    from pointdistill.engine.reports.tables import Table

    destination = plan_parts(files, output) if output is not None else None
    with console_reporter() as reporter:
        done, failed = segment_files(
            segmenter,
            files,
            category=category,
            up=up,
            reporter=reporter,
        )
    names = segmenter.spec.part_names
    if destination is not None and done:
        write_parts(done, names, destination)
    if as_json:
        _print_json([_part_row(file, names) for file in done])
    elif done:
        rows = tuple(
            (str(file.source), f"{len(file.points):,}", _shares(file, names)) for file in done
        )
        print_table(Table("Parts of the files", ("file", "points", "parts"), rows))
    _remark(done, failed, up or segmenter.spec.input.up)
    if output is not None and done:
        echo(f"parts: {output}", err=as_json)
    return bool(failed)


def _class_row(file: ClassifiedFile) -> dict[str, Any]:
    best, probability = file.probabilities[0]
    return {
        "file": str(file.source),
        "class": best,
        "probability": probability,
        "probabilities": dict(file.probabilities),
    }


def _part_row(file: SegmentedFile, names: Sequence[str]) -> dict[str, Any]:
    return {"file": str(file.source), "points": len(file.points), "parts": file.shares(names)}


def _shares(file: SegmentedFile, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in file.shares(names).items())


def _print_json(rows: Sequence[dict[str, Any]]) -> None:
    import json

    echo_lines(json.dumps(list(rows), indent=1, ensure_ascii=False))


def _remark(
    done: Sequence[ClassifiedFile | SegmentedFile], failed: Sequence[FailedFile], up: str
) -> None:
    """Print which up axis was assumed, and which files could not be used."""
    assumed = sum(file.assumed_up for file in done)
    if assumed:
        echo(
            f"{assumed:,} of {len(done):,} files state no up axis; {up} was assumed, --up sets another",
            err=True,
        )
    for file in failed:
        echo(f"error: {file.reason}", err=True)
    if failed and len(failed) + len(done) > 1:
        echo(f"{len(failed):,} of {len(failed) + len(done):,} files could not be used", err=True)

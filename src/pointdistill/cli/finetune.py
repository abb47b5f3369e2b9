"""``pointdistill finetune`` and ``predict``: trains a classifier or a segmenter, and applies it to files."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pointdistill.cli.console import (
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
    complete_one_of,
    did_you_mean_path,
    may_be_repository,
    require_benchmark,
    require_encoder,
    require_own_folder,
    require_paths,
)
from pointdistill.data.benchmarks.registry import trainable_benchmarks
from pointdistill.errors import CheckpointError, ConfigError
from pointdistill.reporter import plural

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pointdistill.data.meshes import FailedFile
    from pointdistill.engine.finetuning.finetune import Finetuned
    from pointdistill.engine.finetuning.models import TrainedClassifier, TrainedSegmenter
    from pointdistill.engine.finetuning.predict import (
        ClassifiedFile,
        SegmentedFile,
        TrainingFiles,
    )


class TaskName(StrEnum):
    """The data that a model can be trained on."""

    FOLDER = "folder"
    _ignore_ = "name"
    for name in trainable_benchmarks():
        vars()[name.upper()] = name


def finetune(
    context: typer.Context,
    benchmark: Annotated[
        TaskName, typer.Argument(help="What to train on; folder means your own, see --data.")
    ] = TaskName.FOLDER,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Your folder, with one sub-folder of meshes or clouds per class; or a benchmark's archive."
        ),
    ] = None,
    encoder: EncoderOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the model; by default under models/."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="ScanObjectNN: OBJ-BG, OBJ-ONLY or PB-T50-RS. Default: PB-T50-RS."),
    ] = None,
    stand_in: Annotated[
        bool,
        typer.Option("--stand-in", help="Train on the benchmark's stand-in, made on first use."),
    ] = False,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Start from random weights, for comparison.")
    ] = False,
    frozen: Annotated[
        bool,
        typer.Option("--frozen", help="Train only the head; the encoder stays as it is."),
    ] = False,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the data. Default: the recipe's, 150 or 300."),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**63 - 1, help="Seed of weights, order and views, and of a folder's split."
        ),
    ] = 0,
    held_out: Annotated[
        float | None,
        typer.Option(
            "--held-out",
            "--hold-out",
            help="Share of each class of a folder held out for testing. Default: 0.2.",
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted training in --output.")
    ] = False,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Turn an encoder into a classifier (on shapenetpart, a part segmenter). Ctrl-C saves; --resume continues."""
    if resume:
        output = _check_resume(context, output)
        require_paths([output], "output")
    elif benchmark.value == TaskName.FOLDER.value:
        require_own_folder(data)
    else:
        require_benchmark(
            benchmark.value, splits=[split] if split else (), data=data, stand_in=stand_in
        )
    if encoder is not None:
        require_encoder(encoder, "encoder")

    from pointdistill.engine.finetuning.finetune import finetune, resume_finetune
    from pointdistill.engine.finetuning.request import FinetuneRequest

    if resume:
        assert output is not None
        with console_reporter() as reporter:
            result = resume_finetune(output, device=device, reporter=reporter)
    else:
        request = FinetuneRequest(
            benchmark=benchmark.value,
            data=data,
            split=split,
            stand_in=stand_in,
            held_out=held_out,
            up=up,
            encoder=encoder,
            from_scratch=from_scratch,
            frozen=frozen,
            epochs=epochs,
            seed=seed,
            output=output,
            device=device,
        )
        with console_reporter() as reporter:
            result = finetune(request, reporter=reporter)
    picture = None
    if result.confusion is not None:
        picture = result.output / CONFUSION
        _draw_confusion(picture, result.confusion, result.classes, "test shapes, last epoch")
    if as_json:
        score = dict(result.score)
        done = {"finished": result.finished, "epochs": result.epochs, "score": score}
        head = {"output": result.output, "kind": result.kind}
        print_json("finetune", head | done | {"picture": picture})
        if not result.finished:
            raise typer.Exit(130)
        return
    _say_result(result)


def _check_resume(context: typer.Context, output: Path | None) -> Path:
    """The folder of the training to resume.

    Raises:
        ConfigError: if it was not named, or if settings were given, since a training keeps those it has.
    """
    changed = [
        name
        for name in context.params
        if name not in ("resume", "output", "device", "quiet", "as_json")
        and (source := context.get_parameter_source(name)) is not None
        and source.name == "COMMANDLINE"
    ]
    if changed or output is None:
        added = f", and {changed[0]} was given" if changed else ""
        msg = (
            f"a training is resumed with its own settings: give --resume with --output alone{added}"
        )
        raise ConfigError(msg)
    return output


def _say_result(result: Finetuned) -> None:
    """Print the outcome and the next command; exits with code 130 if the training was interrupted."""
    place = shlex.quote(str(result.output))
    if not result.finished:
        echo(
            f"stopped after {result.epochs} complete epochs; everything is saved in {result.output}"
        )
        echo(f"next: pointdistill finetune --resume --output {place}")
        raise typer.Exit(130)
    echo(_score(result))
    echo(f"{result.kind}: {result.output}")
    if result.confusion is not None:
        echo(f"picture: {result.output / CONFUSION}, test shapes by true and predicted class")
    category = " --category CATEGORY" if result.kind == "segmenter" else ""
    echo(f"next: pointdistill predict {place} FILE…{category}")


def _score(result: Finetuned) -> str:
    """The last epoch's figures, which are the result, and the best epoch's."""
    score = result.score
    if result.kind == "classifier":
        main, mean, names = "accuracy", "class_accuracy", ("accuracy", "class mean")
    else:
        main, mean, names = "instance_miou", "class_miou", ("instance mIoU", "class mIoU")
    return (
        f"test {names[0]} {score[main]:.2f} %, {names[1]} {score[mean]:.2f} %, after the last of "
        f"{plural(result.epochs, 'epoch')} (best epoch {score['best_epoch']}: "
        f"{score['best_epoch_' + main]:.2f} %, "
        "chosen on the test shapes: a bound, not a result)"
    )


CONFUSION = "confusion.png"
"""The picture in the folder of a classifier."""


def _draw_confusion(
    path: Path, counts: NDArray[np.int64], classes: Sequence[str], title: str
) -> None:
    """Draw which classes are taken for which."""
    from pointdistill.data.files.files import write_aside
    from pointdistill.engine.evaluation.tables import confusion_chart

    with write_aside(path) as aside:
        aside.write_bytes(confusion_chart([counts], classes, title=title))


SHOWN = 3
"""Most classes of a file to print."""


def predict(
    model: Annotated[
        Path, typer.Argument(help="Folder that `finetune` wrote, or owner/name on the Hub.")
    ],
    files: Annotated[
        list[Path], typer.Argument(help="Mesh or point files, and folders.", metavar="PATH…")
    ],
    category: Annotated[
        str | None, typer.Option(help="Category of the files; a segmenter needs it.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="For a segmenter: a folder (one coloured .ply for each file), an archive.npz, or one .ply. For a "
            "classifier: the .png of its confusions, where folders are called after classes.",
        ),
    ] = None,
    up: Annotated[
        str | None,
        typer.Option(
            help="Up axis (x, y, z, -x, -y, -z) of files that do not state it. Default: the training data's.",
            callback=check_up,
            autocompletion=complete_one_of(*UP_AXES),
        ),
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Name shapes with a classifier, or their parts with a segmenter.

    Files that cannot be used are listed and the others are done; the exit code
    is then 2.
    """
    if not may_be_repository(model):
        require_paths([model])
        if not (model / "config.json").is_file():
            msg = f"{model}: no model here (no config.json); `pointdistill finetune` writes one"
            raise CheckpointError(msg)

    from pointdistill.engine.finetuning.models import TrainedClassifier, load_model
    from pointdistill.engine.runtime.devices import pick_device

    torch_device = pick_device(device)
    try:
        loaded = load_model(model)
    except CheckpointError as error:
        near = "" if model.exists() else did_you_mean_path(model)
        msg = f"{error}{near}"
        raise CheckpointError(msg, settings=error.settings) from error
    if isinstance(loaded, TrainedClassifier):
        if category is not None:
            msg = f"{model} is a classifier; --category is for a segmenter, leave it out"
            raise ConfigError(msg)
        if output is not None and output.suffix.lower() != ".png":
            msg = f"{model} is a classifier, whose output is a picture that ends in .png, got {str(output)!r}"
            raise ConfigError(msg, settings=("output",))
        # As with `search`, a picture is drawn unasked beside a table, and for JSON only where it is named.
        picture = output or (None if as_json else Path(f"{model.name}-{CONFUSION}"))
        failed = _classify(loaded.to(torch_device), files, up, picture, as_json)
    else:
        failed = _segment(loaded.to(torch_device), files, category, output, up, as_json)
    if failed:
        raise typer.Exit(2)


def _classify(
    classifier: TrainedClassifier,
    files: Sequence[Path],
    up: str | None,
    picture: Path | None,
    as_json: bool,
) -> bool:
    """Print the classes of the files; returns whether any file could not be used."""
    from pointdistill.engine.finetuning.predict import (
        TrainingFiles,
        classify_files,
        confusion_of_folders,
        find_training_files,
    )
    from pointdistill.engine.reports.tables import Table

    with console_reporter() as reporter:
        done, failed = classify_files(classifier, files, up=up, reporter=reporter)
    counts = confusion_of_folders(done, classifier.classes)
    seen, remark = TrainingFiles(), ""
    if counts is not None:
        seen = find_training_files(classifier.training, done, failed)
        others = [file for file in done if os.path.realpath(file.source) not in seen.known]
        of_others = confusion_of_folders(others, classifier.classes)
        counts = counts if of_others is None else of_others
        remark = _trained_on(seen, left_out=of_others is not None)
    accuracy = None if counts is None else 100.0 * counts.trace() / counts.sum()
    if counts is None:
        picture = None
    elif picture is not None:
        title = f"{counts.sum():,} files, by the names of their folders{remark}"
        _draw_confusion(picture, counts, classifier.classes, title)
    if as_json:
        none = counts is None  # then nothing was looked for
        trained = {
            "trained_on": None if none else len(seen.known),
            "possibly_trained_on": None if none else seen.possible,
        }
        known = {"accuracy": accuracy, **trained, "picture": picture}
        records = [_class_row(file, classifier.classes) for file in done]
        _print_files("classifier", records, failed, known)
    elif done:
        places = ("class", "second", "third")[: min(SHOWN, len(classifier.classes))]
        rows = tuple(
            (
                str(file.source),
                *(f"{name} {100 * p:.1f} %" for name, p in file.probabilities[:SHOWN]),
            )
            for file in done
        )
        print_table(Table("Classes of the files", ("file", *places), rows), whole=True)
    if counts is not None and not as_json:
        files_counted = f"{accuracy:.1f} % of {counts.sum():,} files"
        echo(f"accuracy by the names of the folders: {files_counted}{remark}")
        echo(f"picture: {picture}")
    _remark(done, failed, None if up else classifier.spec.input.up)
    return bool(failed)


def _trained_on(seen: TrainingFiles, *, left_out: bool) -> str:
    """How files that the model was trained on went into its accuracy; empty if there are none."""
    if seen.known and left_out:
        return f"; {plural(len(seen.known), 'file')} that it was trained on left out"
    if seen.known:
        return f"; it was trained on {len(seen.known):,} of them, so others may fare worse"
    if seen.possible:
        return f"; it may have been trained on {seen.possible:,} of them"
    return ""


def _segment(
    segmenter: TrainedSegmenter,
    files: Sequence[Path],
    category: str | None,
    output: Path | None,
    up: str | None,
    as_json: bool,
) -> bool:
    """Print and write the parts of the files; returns whether any file could not be used."""
    from pointdistill.data.meshes.read import files_in_folders
    from pointdistill.engine.finetuning.predict import plan_parts, segment_files, write_parts
    from pointdistill.engine.reports.tables import Table

    with console_reporter() as reporter:
        files = files_in_folders(files, leave_out=output, say=reporter.say)
        destination = plan_parts(files, output) if output is not None else None
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
        _print_files("segmenter", [_part_row(file, names) for file in done], failed, {})
    elif done:
        rows = tuple(
            (str(file.source), f"{len(file.points):,}", _shares(file, names)) for file in done
        )
        print_table(Table("Parts of the files", ("file", "points", "parts"), rows), whole=True)
    _remark(done, failed, None if up else segmenter.spec.input.up)
    if output is not None and done:
        echo(f"parts: {output}", err=as_json)
    return bool(failed)


def _class_row(file: ClassifiedFile, classes: Sequence[str]) -> dict[str, Any]:
    from pointdistill.engine.finetuning.predict import folder_label

    best, probability = file.probabilities[0]
    return {
        "file": str(file.source),
        "label": folder_label(file, classes),
        "class": best,
        "probability": probability,
        "probabilities": dict(file.probabilities),
    }


def _part_row(file: SegmentedFile, names: Sequence[str]) -> dict[str, Any]:
    return {"file": str(file.source), "points": len(file.points), "parts": file.shares(names)}


def _shares(file: SegmentedFile, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in file.shares(names).items())


def _print_files(
    kind: str,
    rows: Sequence[dict[str, Any]],
    failed: Sequence[FailedFile],
    more: dict[str, Any],
) -> None:
    refused = [{"file": str(file.source), "reason": file.reason} for file in failed]
    print_json("predict", {"kind": kind, "files": list(rows), "failed": refused} | more)


def _remark(
    done: Sequence[ClassifiedFile | SegmentedFile], failed: Sequence[FailedFile], up: str | None
) -> None:
    """Print which up axis was assumed, None for one that was given; what was left out, and what cannot be used."""
    from pointdistill.data.meshes.records import LeftOut

    assumed = sum(file.assumed_up for file in done)
    if assumed and up is not None:
        files = plural(assumed, "file")
        line = f"{up} was taken as the up axis of {files} without a stated one; --up sets another"
        echo(f"note: {line}", err=True)
    if line := sum((file.left_out for file in done), start=LeftOut()).line():
        echo(line, err=True)
    for file in failed:
        say_refused(None, file.reason)
    if failed and len(failed) + len(done) > 1:
        echo(
            f"{len(failed):,} of {plural(len(failed) + len(done), 'file')} could not be used",
            err=True,
        )

"""Commands about weights: ``pointdistill weights``, ``export``, ``push`` and ``import-weights``."""

from __future__ import annotations

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
)
from pointdistill.cli.options import (
    JsonOption,
    complete_encoder,
    complete_weights,
    may_be_repository,
    require_encoder,
    require_paths,
)
from pointdistill.errors import ConfigError
from pointdistill.reporter import plural

if TYPE_CHECKING:
    from pointdistill.engine.reports.tables import Table
    from pointdistill.engine.sharing.export import OnnxExport
    from pointdistill.engine.sharing.push import PreparedUpload


class FormatName(StrEnum):
    """The formats that an encoder can be written in."""

    SAFETENSORS = "safetensors"
    ONNX = "onnx"


class BranchName(StrEnum):
    """Which encoder of a checkpoint; repeated here so that ``--help`` does not load torch."""

    TEACHER = "teacher"
    STUDENT = "student"


def weights(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Download this one now, to use it without a network later.",
            autocompletion=complete_weights,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the encoders that every command knows by name, or download one."""
    from pointdistill.engine.weights import BUNDLED, PUBLISHED, bundled_is_here, suggestion

    if name is not None:
        if name not in (*PUBLISHED, BUNDLED):
            known = ", ".join((*PUBLISHED, *([BUNDLED] if bundled_is_here() else [])))
            msg = f"there are no weights {name!r}; {suggestion(name)}known are {known}"
            raise ConfigError(msg)
        from pointdistill.engine.weights.encoders import locate_encoder

        with console_reporter() as reporter:
            folder = locate_encoder(name, reporter=reporter)
        if as_json:
            print_json("weights", {"name": name, "folder": folder})
            return
        echo(f"{name}: {'comes with the program' if name == BUNDLED else folder}")
        echo(f"next: pointdistill embed YOUR_FILES --encoder {name}")
        return
    if as_json:
        print_json("weights", {"encoders": _weights_records()})
        return
    for table in _named_weights():
        print_table(table)
    echo("next: pointdistill embed YOUR_FILES --encoder asymdsd-s")


def _weights_records() -> list[dict[str, Any]]:
    """Every name, with size, training data, licence, and the paper's figures in percent."""
    from pointdistill.engine.weights import BUNDLED, PUBLISHED, bundled_is_here

    published = [
        {
            "name": one.name,
            "model": f"{one.size}, {one.mode}",
            "megabytes": one.megabytes,
            "trained_on": one.source["name"],
            "licence": one.source["licence"],
            "accuracy": {
                name: one.published_accuracy(*figure) for name, figure in _FIGURES.items()
            },
            "is_here": one.is_here,
        }
        for one in PUBLISHED.values()
    ]
    bundled = {
        "name": BUNDLED,
        "model": "mini, dual",
        "megabytes": None,
        "trained_on": "shapes made on the spot",
        "licence": "any use, also commercial",
        "accuracy": dict.fromkeys(_FIGURES),
        "is_here": True,
    }
    return [*published, *([bundled] if bundled_is_here() else [])]


def _named_weights() -> tuple[Table, Table]:
    """The same as tables that fit a terminal of 80 columns: what there is, and the paper's figures."""
    from pointdistill.engine.reports.tables import Table
    from pointdistill.engine.weights import (
        BUNDLED,
        REPOSITORY,
        bundled_is_here,
        cache_folder,
    )

    records = _weights_records()

    rows = tuple(
        (
            one["name"],
            one["model"],
            f"{one['megabytes']} MB" if one["megabytes"] else "-",
            "yes" if one["is_here"] else "no",
            one["trained_on"],
        )
        for one in records
    )
    licences = {one["trained_on"]: one["licence"] for one in records}
    notes = (
        f"Published by the method's authors in {REPOSITORY} on the Hugging Face Hub: see there for the terms of "
        f"the weights themselves. Downloaded once, into {cache_folder() / 'encoders'}.",
        *([f"{BUNDLED} comes with this program."] if bundled_is_here() else []),
        *(f"Licence of the data, {name}: {licence}." for name, licence in licences.items()),
    )
    scores = tuple(
        (
            one["name"],
            *("-" if score is None else f"{score:.2f}" for score in one["accuracy"].values()),
        )
        for one in records
        if any(score is not None for score in one["accuracy"].values())
    )
    about = "Accuracy in % as the paper reports it (arXiv 2506.21724): ScanObjectNN PB-T50-RS, and ModelNet40."
    return (
        Table("Encoders by name", ("name", "model", "download", "here", "trained on"), rows, notes),
        Table("Published accuracy", ("name", *_FIGURES), scores, (about,)),
    )


_FIGURES = {
    "fine-tuned": ("scanobjectnn", "PB-T50-RS", "finetune"),
    "linear": ("scanobjectnn", "PB-T50-RS", "linear"),
    "SVM": ("scanobjectnn", "PB-T50-RS", "svm"),
    "ModelNet40": ("modelnet40", None, "finetune"),
}
"""Columns of published figures: benchmark, split and protocol of each."""


def export(
    output: Annotated[Path, typer.Argument(help="Folder to write; made if absent.")],
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="ENCODER",
            autocompletion=complete_encoder,
            help="Run, encoder folder or file, owner/name on the Hub, or a name that `weights` lists. "
            "Default: the last run made here, or else the encoder that comes with the program.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="onnx: instead of an encoder, a classifier or segmenter: the folder that `finetune` wrote, or "
            "owner/name on the Hub.",
        ),
    ] = None,
    file_format: Annotated[
        FormatName,
        typer.Option(
            "--format", help="safetensors for Python; onnx (raw points to features) for elsewhere."
        ),
    ] = FormatName.SAFETENSORS,
    points: Annotated[
        int | None,
        typer.Option(
            min=1, help="onnx: points of every cloud. Default: those of a view in pretraining."
        ),
    ] = None,
    half: Annotated[
        bool,
        typer.Option(
            "--half", help="safetensors: round the weights to float16, for a file of half the size."
        ),
    ] = False,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="safetensors: measure feature statistics on the shapes of this corpus or folder, which `search` "
            "compares by."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an encoder that is in the folder already.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write an encoder for `pointdistill.load_encoder`, or any model as ONNX for programs without torch."""
    if half and file_format is FormatName.ONNX:
        msg = "--half belongs to --format safetensors; an ONNX file is float32"
        raise ConfigError(msg)
    if points is not None and file_format is not FormatName.ONNX:
        msg = f"--points {points} belongs to --format onnx; safetensors take clouds of any size"
        raise ConfigError(msg)
    if corpus is not None and file_format is FormatName.ONNX:
        msg = (
            f"--corpus {corpus} belongs to --format safetensors; statistics lie beside its weights"
        )
        raise ConfigError(msg)
    if model is not None:
        if file_format is not FormatName.ONNX or encoder is not None or points is not None:
            msg = f"--model {model} goes with --format onnx, and without --encoder and --points"
            raise ConfigError(msg)
        require_paths([] if may_be_repository(Path(model)) else [Path(model)], "model")
        from pointdistill.engine.sharing.export import export_model_onnx

        _describe_onnx(export_model_onnx(model, output), as_json=as_json)
        return
    require_paths([corpus], "corpus")
    require_encoder(encoder, "encoder")
    written = output / ("model.onnx" if file_format is FormatName.ONNX else "model.safetensors")
    if written.exists() and not overwrite:
        msg = f"{written} exists; name another folder, or give --overwrite to replace it"
        raise ConfigError(msg)

    from pointdistill.engine.pretraining.run_folder import choose_encoder
    from pointdistill.engine.sharing.export import export_encoder

    with console_reporter() as reporter:
        source = choose_encoder(encoder, reporter=reporter)
    if file_format is FormatName.ONNX:
        from pointdistill.engine.sharing.export import export_onnx

        _describe_onnx(export_onnx(source, output, points=points), as_json=as_json)
        return
    folder = export_encoder(source, output, half=half)
    if corpus is not None:
        _measure(output, corpus, as_json=as_json)
    if as_json:
        print_json("export", _export_record(folder, sorted(output.iterdir())))
        return
    echo(f"{_shown(folder)} -> {output}/model.safetensors, {output}/config.json")
    echo(f"next: in Python, pointdistill.load_encoder({str(output)!r})")


def _shown(stored: Path) -> str:
    """The name of a known encoder, and the path of any other."""
    from pointdistill.engine.weights import name_of

    return name_of(stored) or str(stored)


def _export_record(
    model: Path, files: Sequence[Path], exported: OnnxExport | None = None
) -> dict[str, Any]:
    return {
        "model": model,
        "files": list(files),
        "points": exported.points if exported else None,
        "difference": exported.difference if exported else None,
    }


def _measure(folder: Path, corpus: Path, *, as_json: bool) -> None:
    """Measure an exported encoder's feature statistics, and say on how many shapes."""
    from pointdistill.engine.embedding.memory import measure_encoder

    with console_reporter() as reporter:
        measured = measure_encoder(folder, corpus, reporter=reporter)
    if measured.failed:
        name, reason = measured.failed[0]
        more = f" (and {len(measured.failed) - 1:,} more)" if len(measured.failed) > 1 else ""
        echo(f"left out: {name}: {reason}{more}", err=True)
    echo(
        f"{measured.path}: feature statistics of {plural(measured.shapes, 'shape')} of {corpus}",
        err=as_json,
    )


def _describe_onnx(exported: OnnxExport, *, as_json: bool) -> None:
    """Print the file, its inputs and outputs, and the largest difference from the model's own outputs."""
    if as_json:
        print_json("export", _export_record(exported.source, [exported.path], exported))
        return
    echo(f"{_shown(exported.source)} -> {exported.path}")
    echo(exported.signature)
    if exported.difference is None:
        echo("not checked: onnxruntime is not installed; pip install 'pointdistill[onnx]'")
    else:
        echo(f"checked in onnxruntime: at most {exported.difference:.1g} from the {exported.kind}")
    echo(f"next: in any language, open {exported.path} with onnxruntime")


def push(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            autocompletion=complete_encoder,
            help="Run, encoder folder or file, fine-tuned model, owner/name on the Hub, or a name of `weights`.",
        ),
    ],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Name on the Hub.")],
    card_only: Annotated[
        Path | None,
        typer.Option(help="Write the folder to upload to this path, and upload nothing."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="If the repository is new, make it private.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Upload weights to the Hugging Face Hub with a model card: recipe, results, licences. Needs your token."""
    if "/" in repository:  # any other name is refused first, by the engine
        require_encoder(source)

    from pointdistill.engine.pretraining.run_folder import encoder_line
    from pointdistill.engine.sharing.push import CARD, prepare, upload

    prepared = prepare(source, repository, card_only or Path("hub", repository))
    if prepared.is_encoder:
        echo(encoder_line(prepared.source), err=True)
    if as_json:
        address = None
        if card_only is None:
            address = upload(prepared.folder, repository, private=private)
        print_json("push", _push_record(prepared, repository, address))
        return
    licence = prepared.licence.identifier + (
        f" ({prepared.licence.name})" if prepared.licence.name else ""
    )
    count = f"{plural(prepared.results, 'result')} on the card"
    if not prepared.results:
        count = "no results on the card" + (
            "; `pointdistill evaluate` measures some" if prepared.is_encoder else ""
        )
    echo(f"{_shown(prepared.source)} -> {prepared.folder}: licence {licence}, {count}")
    if prepared.non_commercial:
        echo(f"no commercial use: it was trained on {', '.join(prepared.non_commercial)}")
    if card_only is not None:
        again = shlex.join(["pointdistill", "push", source, repository])
        echo(f"next: read {shlex.quote(str(prepared.folder / CARD))}, then {again}")
        return
    echo(upload(prepared.folder, repository, private=private))
    echo(f"next: anywhere, in Python: {prepared.load}")


def _push_record(prepared: PreparedUpload, repository: str, address: str | None) -> dict[str, Any]:
    from pointdistill.engine.sharing.push import CARD

    return {
        "source": prepared.source,
        "kind": "encoder" if prepared.is_encoder else "model",
        "folder": prepared.folder,
        "card": prepared.folder / CARD,
        "licence": prepared.licence.identifier,
        "licence_name": prepared.licence.name or None,
        "non_commercial": prepared.non_commercial,
        "results": prepared.results,
        "repository": repository,
        "address": address,
        "load": prepared.load,
    }


def import_weights(
    checkpoint: Annotated[Path, typer.Argument(help="A published .ckpt file of the method.")],
    output: Annotated[Path, typer.Option(help="Folder to write; made if absent.")],
    branch: Annotated[
        BranchName, typer.Option(help="Which encoder; evaluation reads the teacher's.")
    ] = BranchName.TEACHER,
    heads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Attention heads, for a width that is not the paper's. Default: as the file says.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a published checkpoint into an encoder folder; no code in it is run."""
    require_paths([checkpoint])

    from pointdistill.engine.weights.published import import_weights as run

    imported = run(checkpoint, output, branch=branch.value, heads=heads)
    config = imported.encoder.config
    if as_json:
        record: dict[str, Any] = {"checkpoint": checkpoint, "output": output}
        record |= {name: getattr(imported, name) for name in _IMPORTED}
        record |= {name: getattr(config, name) for name in ("width", "depth", "heads")}
        print_json("import-weights", record)
        return
    trained = f"mode {imported.mode}" if imported.mode else "mode not known"
    echo(
        f"{checkpoint}: {imported.branch}, {trained}, {imported.parameters:,} parameters, width {config.width}, "
        f"depth {config.depth}, {config.heads} heads ({imported.heads_from})"
    )
    echo(f"-> {output}/model.safetensors, {output}/config.json")
    echo(
        "the file does not say which shapes it was trained on; ask its publisher for their licences"
    )
    echo(f"next: pointdistill evaluate scanobjectnn --encoder {shlex.quote(str(output))}")


_IMPORTED = ("branch", "mode", "parameters", "heads_from", "epoch", "step")
"""What the JSON document tells of an imported encoder beside its sizes."""

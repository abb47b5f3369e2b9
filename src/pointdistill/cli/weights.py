"""Commands that export, share and import weights: ``pointdistill export``, ``push`` and ``import-weights``."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pointdistill.cli.console import echo
from pointdistill.cli.options import require_encoder, require_paths
from pointdistill.errors import ConfigError

if TYPE_CHECKING:
    from pointdistill.engine.sharing.export import OnnxExport


class FormatName(StrEnum):
    """The formats that an encoder can be written in."""

    SAFETENSORS = "safetensors"
    ONNX = "onnx"


class BranchName(StrEnum):
    """Which encoder of a checkpoint; repeated here so that ``--help`` does not load torch."""

    TEACHER = "teacher"
    STUDENT = "student"


def export(
    output: Annotated[Path, typer.Argument(help="Folder to write; made if absent.")],
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Run, encoder folder or file, or owner/name on the Hub; by default the last run made here.",
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
) -> None:
    """Write an encoder for `pointdistill.load_encoder`, or as ONNX for programs without torch."""
    from pointdistill.data.files.workspace import last_run

    if points is not None and file_format is not FormatName.ONNX:
        msg = f"--points {points} belongs to --format onnx; safetensors take clouds of any size"
        raise ConfigError(msg)
    require_encoder(encoder, "encoder")
    source = encoder or last_run()
    assert source is not None

    from pointdistill.engine.pretraining.record import encoder_line
    from pointdistill.engine.sharing.export import export_encoder
    from pointdistill.engine.weights.encoders import locate_encoder

    echo(encoder_line(locate_encoder(source)), err=True)
    if file_format is FormatName.ONNX:
        from pointdistill.engine.sharing.export import export_onnx

        _describe_onnx(export_onnx(source, output, points=points))
        return
    folder = export_encoder(source, output)
    echo(f"{folder} -> {output}/model.safetensors, {output}/config.json")
    echo(f"next: in Python, pointdistill.load_encoder({str(output)!r})")


def _describe_onnx(exported: OnnxExport) -> None:
    """Print the file, its inputs and outputs, and the largest difference from the encoder's own features."""
    echo(f"{exported.source} -> {exported.path}")
    cls = f"cls (B, {exported.width}), " if exported.cls_token else ""
    echo(
        f"points (B, {exported.points}, 3) float32, raw -> {cls}"
        f"patches (B, {exported.patches}, {exported.width}), centers (B, {exported.patches}, 3)"
    )
    if exported.difference is None:
        echo("not checked: onnxruntime is not installed; pip install 'pointdistill[onnx]'")
    else:
        echo(f"checked in onnxruntime: at most {exported.difference:.1g} from the encoder")
    echo(f"next: in any language, open {exported.path} with onnxruntime; see docs/weights.md")


def push(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Run, encoder folder or file, fine-tuned model, or owner/name on the Hub.",
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
) -> None:
    """Upload weights to the Hugging Face Hub with a model card: recipe, results, licences. Needs your token."""
    if "/" in repository:  # any other name is refused first, by the engine
        require_encoder(source)

    from pointdistill.engine.pretraining.record import encoder_line
    from pointdistill.engine.sharing.push import CARD, prepare, upload

    prepared = prepare(source, repository, card_only or Path("hub", repository))
    if prepared.is_encoder:
        echo(encoder_line(prepared.source), err=True)
    licence = prepared.licence.identifier + (
        f" ({prepared.licence.name})" if prepared.licence.name else ""
    )
    count = f"{prepared.results} result{'' if prepared.results == 1 else 's'}"
    echo(f"{prepared.source} -> {prepared.folder}: licence {licence}, {count}")
    if prepared.non_commercial:
        echo(f"no commercial use: it was trained on {', '.join(prepared.non_commercial)}")
    if card_only is not None:
        again = shlex.join(["pointdistill", "push", source, repository])
        echo(f"next: read {shlex.quote(str(prepared.folder / CARD))}, then {again}")
        return
    echo(upload(prepared.folder, repository, private=private))
    echo(f"next: anywhere, in Python: {prepared.load}")


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
) -> None:
    """Turn a published checkpoint into an encoder folder; no code in it is run."""
    require_paths([checkpoint])

    from pointdistill.engine.weights.published import import_weights as run

    imported = run(checkpoint, output, branch=branch.value, heads=heads)
    config = imported.encoder.config
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

"""``pointdistill export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pointdistill.engine.exchange.export import OnnxExport


class FormatName(StrEnum):
    """What an encoder can be written as."""

    SAFETENSORS = "safetensors"
    ONNX = "onnx"


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
    from pointdistill.data.workspace import last_run
    from pointdistill.engine.exchange.encoders import locate_encoder
    from pointdistill.engine.exchange.export import export_encoder
    from pointdistill.engine.exchange.record import encoder_line
    from pointdistill.errors import CheckpointError, ConfigError

    if points is not None and file_format is not FormatName.ONNX:
        msg = f"--points {points} belongs to --format onnx; safetensors take clouds of any size"
        raise ConfigError(msg)
    source = encoder or last_run()
    if source is None:
        msg = "no run was made in this folder yet; run `pointdistill pretrain`, or name one with --encoder"
        raise CheckpointError(msg)
    typer.echo(encoder_line(locate_encoder(source)), err=True)
    if file_format is FormatName.ONNX:
        from pointdistill.engine.exchange.export import export_onnx

        _say(export_onnx(source, output, points=points))
        return
    folder = export_encoder(source, output)
    typer.echo(f"{folder} -> {output}/model.safetensors, {output}/config.json")
    typer.echo(f"next: in Python, pointdistill.load_encoder({str(output)!r})")


def _say(made: OnnxExport) -> None:
    """What was written, how it is called, and how far it is from the encoder."""
    typer.echo(f"{made.source} -> {made.path}")
    cls = f"cls (B, {made.width}), " if made.cls_token else ""
    typer.echo(
        f"points (B, {made.points}, 3) float32, raw -> {cls}patches (B, {made.patches}, {made.width}), "
        f"centers (B, {made.patches}, 3)"
    )
    if made.difference is None:
        typer.echo("not checked: onnxruntime is not installed; pip install 'pointdistill[onnx]'")
    else:
        typer.echo(f"checked in onnxruntime: at most {made.difference:.1g} from the encoder")
    typer.echo(f"next: in any language, open {made.path} with onnxruntime; see docs/weights.md")

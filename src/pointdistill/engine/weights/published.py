"""Converts checkpoints that the method's authors published into encoder folders, and downloads them by name."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import torch

from pointdistill.data.files.download import fetch
from pointdistill.data.files.files import hold_folder, sha256_of
from pointdistill.data.files.schema import parse_json
from pointdistill.data.files.web import LostError, open_web, web_errors
from pointdistill.engine.config.recipes import SIZES
from pointdistill.engine.weights import (
    HUB_SECONDS,
    REPOSITORY,
    PublishedWeights,
    check_hub_address,
    hub_address,
    hub_is_off,
)
from pointdistill.engine.weights.encoders import check_free_for_encoder, load_exactly, save_encoder
from pointdistill.engine.weights.torch_checkpoint import Checkpoint, TensorRecord, open_checkpoint
from pointdistill.engine.weights.torch_zip import LIMITS, Limits
from pointdistill.errors import CheckpointError, ConfigError, DataError
from pointdistill.model.config import EncoderConfig, Mode
from pointdistill.model.encoder import Encoder
from pointdistill.reporter import SILENT, Reporter

log = logging.getLogger("pointdistill")

PUBLISHED_SIZES = ("small", "base", "large")
HEADS_OF_WIDTH = {
    48: 3,
    **{e.width: e.heads for e in (SIZES[n]().encoder for n in PUBLISHED_SIZES)},
}
"""Attention heads by width, which weights' shapes do not show: the paper's sizes, and a small one for tests."""

DEEPEST, WIDEST = 256, 1 << 14
UNKNOWN_SOURCE = {
    "name": "not recorded in the imported file",
    "licence": "unknown: ask whoever published the weights",
    "shapes": 0,
}
"""The licence ledger of an imported encoder."""

_NEXT = (
    "it is incomplete or of another kind of encoder; give the whole checkpoint that was published"
)


class CheckpointBranch(StrEnum):
    """One of the two encoders in a checkpoint; evaluation uses the teacher's."""

    TEACHER = "teacher"
    STUDENT = "student"


@dataclass(frozen=True, slots=True)
class ImportedEncoder:
    """An encoder from a published checkpoint, and what the file records about it."""

    encoder: Encoder
    """In evaluation mode on the CPU, float32."""

    branch: CheckpointBranch
    mode: Mode | None
    """The mode it was trained in; None if neither projection head is in the file."""

    heads_from: str
    """Where the number of attention heads comes from."""

    epoch: int | None
    step: int | None

    @property
    def size(self) -> str:
        """The paper's name for its width, or ``imported``."""
        return _size_of(self.encoder.config.width) or "imported"

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.encoder.parameters())


def import_weights(
    checkpoint: Path, output: Path, *, branch: str = "teacher", heads: int | None = None
) -> ImportedEncoder:
    """Write an encoder of a published checkpoint as an encoder folder.

    Args:
        checkpoint: a Lightning file in the published format, which is read as data; nothing in it is executed.
        output: folder, created if absent; an encoder in it is replaced.
        branch: ``teacher`` or ``student``.
        heads: attention heads; by default the number in the file's settings, else the paper's for this width.

    Raises:
        CheckpointError: if the file is refused, is not an encoder of this method, or ``heads`` do not fit.
        ConfigError: if ``branch`` does not exist.
        DataError: if ``output`` holds other files.
    """
    check_free_for_encoder(output)
    imported = read_published(checkpoint, branch=branch, heads=heads)
    _save(imported, output, checkpoint, sha256=sha256_of(checkpoint))
    return imported


def _save(
    imported: ImportedEncoder,
    output: Path,
    checkpoint: Path,
    *,
    sha256: str,
    url: str | None = None,
    sources: Sequence[Mapping[str, Any]] = (UNKNOWN_SOURCE,),
) -> None:
    """Write an encoder folder that records which file it came from, and where that is published if it is known."""
    origin = {
        "file": checkpoint.name,
        "sha256": sha256,
        **({} if url is None else {"url": url}),
        "branch": str(imported.branch),
        "epoch": imported.epoch,
        "step": imported.step,
        "heads_from": imported.heads_from,
    }
    training = {
        "name": imported.size,
        "mode": None if imported.mode is None else str(imported.mode),
        "imported": origin,
    }
    save_encoder(imported.encoder, output, sources=sources, training=training)


_LONGEST_LIST = 1 << 22  # bytes; the Hub's list of the repository's files takes a few thousand
_POLL_SECONDS = 1.0


class _BusyError(CheckpointError):
    """Another process works in the folder of the same weights."""


def fetch_published(
    weights: PublishedWeights,
    *,
    reporter: Reporter = SILENT,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """The encoder folder of published weights, which are downloaded and converted unless that was done before.

    An interrupted download is resumed. The checkpoint is compared with the checksum that the Hub lists, read as
    data, and removed when the teacher's encoder is stored. If another process is doing this, it is waited for.

    Args:
        weights: which; from ``PUBLISHED``.
        reporter: told what is downloaded from where, and the progress.
        sleep: waits, between attempts and for another process.

    Raises:
        CheckpointError: if the Hub cannot be reached, refuses, or sends something else; says what to do.
    """
    folder, waited = weights.folder, False
    while not weights.is_here:
        try:
            with hold_folder(folder, _BusyError(str(folder))):
                if not weights.is_here:
                    _download(weights, reporter, sleep)
        except _BusyError:
            if not waited:
                reporter.say(f"{weights.name}: another process is downloading it; waiting for it")
            waited = True
            sleep(_POLL_SECONDS)
    return folder


def _download(
    weights: PublishedWeights, reporter: Reporter, sleep: Callable[[float], None]
) -> None:
    """Download one checkpoint into the folder of its encoder, convert it there, and remove it."""
    checkpoint = weights.folder / weights.file
    sha256 = _listed_checksum(weights)
    line = f"{weights.name}: downloading {weights.megabytes} MB, once, from {weights.url}"
    reporter.say(line)
    if reporter is SILENT:
        log.warning("%s", line)  # a notebook would seem to hang

    def progress(done: int, total: int | None) -> None:
        reporter.progress(f"downloading {weights.file}", done, total, unit="bytes")

    try:
        # One that is complete already was left by a process that was killed before it had converted it.
        if not checkpoint.is_file() or sha256_of(checkpoint) != sha256:
            fetch(weights.url, checkpoint, sha256=sha256, progress=progress, sleep=sleep)
        imported = read_published(checkpoint)
    except (DataError, CheckpointError) as error:
        msg = f"{weights.name}: {error}"
        raise CheckpointError(msg, settings=error.settings) from error
    source = dict(weights.source)
    _save(imported, weights.folder, checkpoint, sha256=sha256, url=weights.url, sources=[source])
    checkpoint.unlink()


def _listed_checksum(weights: PublishedWeights) -> str:
    """SHA-256 of a checkpoint as the Hub's list of files states it.

    Raises:
        CheckpointError: if the Hub cannot be reached or does not list it.
    """
    url = f"{hub_address()}/api/models/{REPOSITORY}/tree/main"
    try:
        if hub_is_off():
            msg = "HF_HUB_OFFLINE forbids a download"
            raise LostError(msg)
        check_hub_address()
        with web_errors(url), open_web(url, timeout_seconds=HUB_SECONDS) as response:
            listed = parse_json(response.read(_LONGEST_LIST))
    except (LostError, ConfigError, DataError, ValueError) as error:
        reason = f"the Hub cannot be reached ({error})" if isinstance(error, LostError) else error
        msg = (
            f"{weights.name}: not in the cache ({weights.folder}), and {reason}; where there is a network, "
            f"download {weights.url} and convert it by `pointdistill import-weights`, then name the folder that "
            "this wrote"
        )
        raise CheckpointError(msg) from error
    for entry in listed if isinstance(listed, list) else []:
        match entry:
            case {"path": weights.file, "lfs": {"oid": str(sha256)}}:
                return sha256
    msg = f"{weights.name}: {url} lists no {weights.file} with a checksum; see whether it has moved"
    raise CheckpointError(msg)


def read_published(
    path: Path, *, branch: str = "teacher", heads: int | None = None, limits: Limits = LIMITS
) -> ImportedEncoder:
    """An encoder of a published checkpoint, in memory; arguments and errors as ``import_weights``."""
    if branch not in list(CheckpointBranch):
        msg = f"branch must be one of {', '.join(CheckpointBranch)}, got {branch!r}"
        raise ConfigError(msg, settings=("branch",))
    with open_checkpoint(path, limits=limits) as checkpoint:
        weights = to_our_names(checkpoint.state_dict())
        records = _with_prefix(f"{branch}.encoder.", weights)
        try:
            layout = read_layout({name: r.shape for name, r in records.items()})
        except CheckpointError as error:
            msg = f"{path}: no encoder of this method under {branch!r} ({error}); it holds {_first_words(weights)}"
            raise CheckpointError(msg) from error
        config, heads_from = _with_heads(layout, heads, checkpoint)
        return ImportedEncoder(
            encoder=_load(config, records, checkpoint),
            branch=CheckpointBranch(branch),
            mode=_mode(branch, weights),
            heads_from=heads_from,
            epoch=_whole_number(checkpoint.value("epoch")),
            step=_whole_number(checkpoint.value("global_step")),
        )


def _with_prefix(prefix: str, weights: Mapping[str, TensorRecord]) -> dict[str, TensorRecord]:
    return {n.removeprefix(prefix): r for n, r in weights.items() if n.startswith(prefix)}


def _first_words(weights: Mapping[str, TensorRecord]) -> str:
    """The first parts of the names in a file, for a message."""
    words = sorted({ascii(name.split(".")[0][:30]) for name in weights})
    return ", ".join(words[:6]) + (", ..." if words[6:] else "")


def read_layout(shapes: Mapping[str, tuple[int, ...]]) -> EncoderConfig:
    """The configuration that follows from the shapes of an encoder's weights, with one head and the paper's views.

    Args:
        shapes: shape of each weight, by its name in ``Encoder.state_dict``.

    Raises:
        CheckpointError: if a weight is missing or has an unexpected shape; names it.
    """
    blocks = [re.match(r"transformer\.blocks\.(\d{1,6})\.", name) for name in shapes]
    depth = 1 + max((int(match[1]) for match in blocks if match), default=-1)
    width = _lengths(shapes, "transformer.norm", axes=1)[-1]
    stage_one = _lengths(shapes, "patch_embedding.stage_one.", axes=2)
    stage_two = _lengths(shapes, "patch_embedding.stage_two.", axes=2)
    if not 1 <= depth <= DEEPEST:
        msg = f"{depth} blocks; accepted are 1 to {DEEPEST}"
        raise CheckpointError(msg)
    return replace(
        _base_config(width),
        width=width,
        depth=depth,
        heads=1,
        stage_one=stage_one,
        stage_two=stage_two[:-1],
        embedding_bias="patch_embedding.stage_one.0.bias" in shapes,
        cls_token="cls_token" in shapes,
    )


def _lengths(shapes: Mapping[str, tuple[int, ...]], layer: str, *, axes: int) -> tuple[int, ...]:
    """Output sizes of the weights named ``layer.weight`` or ``layer.NUMBER.weight`` that have ``axes`` axes."""
    pattern = re.compile(re.escape(layer.removesuffix(".")) + r"(?:\.(\d{1,6}))?\.weight")
    named = [(pattern.fullmatch(name), shape) for name, shape in shapes.items()]
    numbered = sorted((int(m[1] or 0), s[0]) for m, s in named if m and len(s) == axes)
    lengths = tuple(length for _, length in numbered)
    if not 1 <= len(lengths) <= DEEPEST or not all(1 <= length <= WIDEST for length in lengths):
        msg = f"{layer.removesuffix('.')} has {len(lengths)} layers of the widths {lengths[:6]}"
        raise CheckpointError(msg)
    return lengths


def _size_of(width: int) -> str | None:
    """The paper's name for a width, if there is one."""
    return next((name for name in PUBLISHED_SIZES if SIZES[name]().encoder.width == width), None)


def _base_config(width: int) -> EncoderConfig:
    """The recipe's configuration for a width, or the default, for everything that shapes do not show."""
    size = _size_of(width)
    return EncoderConfig() if size is None else SIZES[size]().encoder


def _with_heads(
    layout: EncoderConfig, requested: int | None, checkpoint: Checkpoint
) -> tuple[EncoderConfig, str]:
    """The layout with its attention heads, and where their number comes from."""
    stated = _whole_number(checkpoint.value("hyper_parameters", "encoder_config", "num_heads"))
    for heads, source in (
        (requested, "given"),
        (stated, "the file's settings"),
        (HEADS_OF_WIDTH.get(layout.width), "the paper's size of this width"),
    ):
        if heads is not None:
            if heads < 1 or layout.width % heads:
                msg = (
                    f"{checkpoint.path}: {heads} attention heads ({source}) do not divide its width, "
                    f"{layout.width}; say how many it has"
                )
                raise CheckpointError(msg, settings=("heads",))
            return replace(layout, heads=heads), source
    msg = (
        f"{checkpoint.path}: no size of the paper has the width {layout.width}, so the number of attention heads "
        "is not known; say how many it has"
    )
    raise CheckpointError(msg, settings=("heads",))


def _load(
    config: EncoderConfig, records: Mapping[str, TensorRecord], checkpoint: Checkpoint
) -> Encoder:
    """An encoder with the recorded weights."""
    # On the meta device, so that all shapes are compared before any memory is allocated.
    with torch.device("meta"):
        encoder = Encoder(config)
    for name, expected in encoder.state_dict().items():
        record = records.get(name)
        if record is None:
            msg = f"{checkpoint.path} does not fit this model: missing {name}; {_NEXT}"
            raise CheckpointError(msg)
        if record.shape != expected.shape or not record.storage.dtype.is_floating_point:
            msg = (
                f"{checkpoint.path}: {name} is {record.storage.dtype} of shape {record.shape}; expected "
                f"floating point of {tuple(expected.shape)}; {_NEXT}"
            )
            raise CheckpointError(msg)
    tensors = checkpoint.tensors(records)
    encoder.to_empty(device="cpu")
    load_exactly(encoder, tensors, checkpoint.path)
    return encoder.eval().requires_grad_(requires_grad=False)


def _mode(branch: str, weights: Mapping[str, TensorRecord]) -> Mode | None:
    """The mode that a branch was trained in, derived from its projection heads."""
    has_cls, has_patches = (
        bool(_with_prefix(f"{branch}.{h}_head.", weights)) for h in ("cls", "patch")
    )
    if has_cls and has_patches:
        return Mode.DUAL
    if has_cls:
        return Mode.CLS
    return Mode.MPM if has_patches else None


def _whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


T = TypeVar("T")

_RENAMINGS: tuple[tuple[str, str], ...] = (
    (r"^mask_token$", "student.predictor.mask_token"),
    (r"\.point_encoder\.", ".encoder."),
    (r"\.(cls|patch)_projection_head\.", r".\1_head."),
    (r"\.(cls|patch)_centering\.center$", r".\1_center"),
    (r"\.patch_embedding\.point_embedding\.block_1\.", ".patch_embedding.stage_one."),
    (r"\.patch_embedding\.point_embedding\.block_2\.", ".patch_embedding.stage_two."),
    (r"\.patch_embedding\.point_embedding\.blocks\.0\.mlp\.", ".patch_embedding.stage_one.mlp."),
    (r"\.patch_embedding\.point_embedding\.blocks\.1\.mlp\.", ".patch_embedding.stage_two.mlp."),
    # The deep embedding has four modules per layer (linear, norm, activation, dropout); ours has three.
    (r"\.(stage_one|stage_two)\.mlp\.(0|1)\.", r".\1.\2."),
    (r"\.(stage_one|stage_two)\.mlp\.4\.", r".\1.3."),
    (r"\.(stage_one|stage_two)\.mlp\.5\.", r".\1.4."),
    (r"\.(stage_one|stage_two)\.mlp\.8\.", r".\1.6."),
    (r"\.patch_embedding\.position_embedding\.position_embedding\.", ".position_embedding."),
    (r"\.encoder\.encoder\.stack\.", ".encoder.transformer.blocks."),
    (r"\.encoder\.encoder\.norm\.", ".encoder.transformer.norm."),
    (r"\.predictor\.module\.stack\.", ".predictor.blocks."),
    (r"\.predictor\.module\.norm\.", ".predictor.norm."),
    (r"\.predictor\.embedding\.", ".predictor.narrow."),
    (r"\.predictor\.projection\.", ".predictor.widen."),
    (r"\.self_attn\.norm\.", ".attention.norm."),
    (r"\.self_attn\.attn\.", ".attention.attention."),
    (r"\.cross_attn\.norm\.", ".norm."),
    (r"\.cross_attn\.attn\.", ".attention."),
    (r"\.in_proj_weight$", ".query_key_value.weight"),
    (r"\.out_proj\.", ".project."),
    (r"\.ffn\.norm\.", ".mlp.norm."),
    (r"\.ffn\.mlp\.linear_1\.", ".mlp.mlp.expand."),
    (r"\.ffn\.mlp\.linear_2\.", ".mlp.mlp.contract."),
    (r"_head\.mlp\.mlp\.0\.", "_head.mlp.0."),
    (r"_head\.mlp\.mlp\.4\.", "_head.mlp.2."),
    (r"_head\.mlp\.mlp\.8\.", "_head.mlp.4."),
    (r"_head\.linear\.bias$", "_head.prototypes.bias"),
    (r"_head\.linear\.parametrizations\.weight\.original0$", "_head.prototypes.magnitude"),
    (r"_head\.linear\.parametrizations\.weight\.original1$", "_head.prototypes.direction"),
    # Classifier and segmenter, whose linear layers, norms, activations and dropouts are numbered in one sequence.
    (r"^\.classification_head\.mlp\.", ".head."),
    (r"^\.segmentation_head\.7\.", ".head.linears.2."),
    (r"^\.segmentation_head\.", ".head."),
    (r"^\.head\.0\.", ".head.linears.0."),
    (r"^\.head\.1\.", ".head.norms.0."),
    (r"^\.head\.4\.", ".head.linears.1."),
    (r"^\.head\.5\.", ".head.norms.1."),
    (r"^\.head\.8\.", ".head.linears.2."),
    (r"^\.point_upsample\.mlp\.0\.", ".upsample.linears.0."),
    (r"^\.point_upsample\.mlp\.1\.", ".upsample.norms.0."),
    (r"^\.point_upsample\.mlp\.3\.", ".upsample.linears.1."),
    (r"^\.point_upsample\.mlp\.4\.", ".upsample.norms.1."),
    (r"^\.label_embedding\.", ".category_embedding."),
)


def our_name(official: str) -> str:
    """Our name for a published weight; ``student.`` and ``teacher.`` stay in front."""
    # The patterns begin with a dot, so the name gets a dot in front, which is removed at the end.
    name = official if official == "mask_token" else f".{official}"
    for pattern, replacement in _RENAMINGS:
        name = re.sub(pattern, replacement, name)
    return name.removeprefix(".")


def to_our_names(state: Mapping[str, T]) -> dict[str, T]:
    """The same tensors, or records of tensors, under our names."""
    return {our_name(name): value for name, value in state.items()}

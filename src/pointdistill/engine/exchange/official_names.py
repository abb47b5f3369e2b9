"""Names of weights in the published checkpoints, as ours. One table, read in order, for every size and mode."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_PAIRS: tuple[tuple[str, str], ...] = (
    (r"^mask_token$", "student.predictor.mask_token"),
    (r"\.point_encoder\.", ".encoder."),
    (r"\.(cls|patch)_projection_head\.", r".\1_head."),
    (r"\.(cls|patch)_centering\.center$", r".\1_center"),
    (r"\.patch_embedding\.point_embedding\.block_1\.", ".patch_embedding.stage_one."),
    (r"\.patch_embedding\.point_embedding\.block_2\.", ".patch_embedding.stage_two."),
    (r"\.patch_embedding\.point_embedding\.blocks\.0\.mlp\.", ".patch_embedding.stage_one.mlp."),
    (r"\.patch_embedding\.point_embedding\.blocks\.1\.mlp\.", ".patch_embedding.stage_two.mlp."),
    # The deep embedding keeps four modules a layer (linear, norm, activation, dropout); ours are three.
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
    # Classifier and segmenter. A linear layer, its norm, activation and dropout are numbered there in one row.
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
    """Our name of one published weight; ``student.`` and ``teacher.`` stay in front."""
    # The rules match between dots, so that a bare `point_encoder.…` needs one in front for the time being.
    name = official if official == "mask_token" else f".{official}"
    for pattern, replacement in _PAIRS:
        name = re.sub(pattern, replacement, name)
    return name.removeprefix(".")


def to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under our names."""
    return {our_name(name): tensor for name, tensor in state.items()}

"""Initial weights, by one function that sets every parameter."""

from __future__ import annotations

import math

import torch
from torch import nn

from pointdistill.model.config import Initialization
from pointdistill.model.heads import Prototypes
from pointdistill.model.transformer import Attention

STD = 0.02


@torch.no_grad()
def initialize(
    module: nn.Module,
    *,
    generator: torch.Generator,
    initialization: Initialization = Initialization.TRUNCATED_NORMAL,
) -> None:
    """Set all weights of ``module`` to new initial values.

    Linear weights and tokens are truncated normal with standard deviation 0.02, biases 0, norms 1. Prototypes are
    drawn like PyTorch's default for a linear layer, with the norms of their directions as magnitudes. The authors'
    initialisation has two exceptions: the packed (3W, W) weight of queries, keys and values is Xavier uniform,
    with standard deviation 1 / sqrt(2W), and the prototypes' bias is 0.
    """
    authors = initialization is Initialization.AUTHORS
    packed = {part.query_key_value for part in module.modules() if isinstance(part, Attention)}
    for part in module.modules():
        if authors and part in packed:
            nn.init.xavier_uniform_(part.weight, generator=generator)
        elif isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=STD, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.RMSNorm | nn.LayerNorm | nn.BatchNorm1d):
            for name, parameter in part.named_parameters(recurse=False):
                nn.init.constant_(parameter, 0.0 if name == "bias" else 1.0)
        elif isinstance(part, Prototypes):
            nn.init.kaiming_uniform_(part.direction, a=math.sqrt(5), generator=generator)
            bound = 1.0 / math.sqrt(part.direction.shape[1])
            if authors:
                nn.init.zeros_(part.bias)
            else:
                nn.init.uniform_(part.bias, -bound, bound, generator=generator)
            part.magnitude.copy_(part.direction.norm(dim=1, keepdim=True))
        else:
            for name, parameter in part.named_parameters(recurse=False):
                if name.endswith("_token"):
                    nn.init.trunc_normal_(parameter, std=STD, generator=generator)

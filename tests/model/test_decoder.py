"""The decoder of hidden patches: distances worked out by hand, and what each query may depend on."""

from __future__ import annotations

import pytest
import torch

from pointdistill.engine.reconstruction.decoder import (
    DecoderConfig,
    PatchDecoder,
    chamfer_distance,
    copied_patches,
)
from pointdistill.errors import ConfigError
from pointdistill.model.initialize import initialize
from pointdistill.model.patches import Patches


@pytest.mark.parametrize(
    ("predicted", "target", "expected"),
    [
        ([[0, 0, 0], [1, 0, 0]], [[1, 0, 0], [0, 0, 0]], 0.0),  # order does not matter
        ([[0, 0, 0]], [[0, 0, 2]], 4.0 + 4.0),  # squared, both ways
        ([[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 3, 0]], 0.0 + 9.0 / 2),  # one is missed
        ([[0, 0, 0], [0, 3, 0]], [[0, 0, 0], [0, 0, 0]], 9.0 / 2 + 0.0),  # one is too many
        ([[1, 0, 0]], [[0, 0, 0], [3, 0, 0]], 1.0 + (1.0 + 4.0) / 2),
    ],
)
def test_chamfer_distance(
    predicted: list[list[float]], target: list[list[float]], expected: float
) -> None:
    one, other = torch.tensor(predicted, dtype=torch.float32), torch.tensor(target).float()
    assert chamfer_distance(one[None, None], other[None, None]).tolist() == [[expected]]


def test_copied_patches_are_those_with_the_nearest_centre() -> None:
    """Centres on a line at 0, 1, 5 and 6; 0 and 5 are visible, so 1 copies 0 and 6 copies 5."""
    centers = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [5, 0, 0], [6, 0, 0]]])
    offsets = torch.arange(4.0)[None, :, None, None].expand(1, 4, 2, 3)
    found = copied_patches(
        Patches(centers, offsets), torch.tensor([[0, 2]]), torch.tensor([[1, 3]])
    )
    assert found[0, :, 0, 0].tolist() == [0.0, 2.0]


def decoder() -> PatchDecoder:
    made = PatchDecoder(12, 5, DecoderConfig(width=8, heads=2))
    initialize(made, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in made.parameters():
            ramp = torch.linspace(-1, 1, parameter.numel()).view(parameter.shape)
            parameter.add_(0.2).mul_(ramp)
    return made


def test_a_hidden_patch_depends_on_its_own_place_and_on_what_is_seen() -> None:
    """Not on the other hidden places, nor on the order of the visible patches."""
    generator = torch.Generator().manual_seed(0)
    cls, features = (
        torch.randn(2, 12, generator=generator),
        torch.randn(2, 4, 12, generator=generator),
    )
    seen, hidden = (
        torch.randn(2, 4, 3, generator=generator),
        torch.randn(2, 6, 3, generator=generator),
    )
    model = decoder()
    found = model(cls, features, seen, hidden)
    assert found.shape == (2, 6, 5, 3)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(cls, features[:, order], seen[:, order], hidden), found)
    torch.testing.assert_close(model(cls, features, seen, hidden[:, :1]), found[:, :1])
    for other in (
        model(cls, features + 1, seen, hidden),
        model(cls + 1, features, seen, hidden),
        model(cls, features, seen + 1, hidden),
        model(None, features, seen, hidden),
    ):
        assert (other - found).abs().max() > 1e-4


def test_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="heads that divide its width"):
        DecoderConfig(width=8, heads=3)

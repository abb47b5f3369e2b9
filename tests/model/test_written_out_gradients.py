"""Gradients written out by hand, against autograd of the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pointdistill.model import losses
from pointdistill.model.encoder import patch_maximum
from pointdistill.model.losses import (
    chunked_cross_entropy,
    patch_cross_entropy,
    plain_cross_entropy,
)
from pointdistill.model.transformer import RMSNorm, rms_norm


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rms_norm_of_three_and_four() -> None:
    """Mean square 12.5, so 3 and 4 become 3 / 3.5355 and 4 / 3.5355, the second then tripled."""
    normed = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 3.0]), 0.0)
    torch.testing.assert_close(normed, torch.tensor([[3.0, 12.0]]) / 12.5**0.5)


def test_rms_norm_has_autograds_gradients() -> None:
    x, weight = draw(2, 3, 7).requires_grad_(), draw(7, seed=1).requires_grad_()
    upstream = draw(2, 3, 7, seed=2)
    plain = torch.nn.functional.rms_norm(x, (7,), weight, 1e-5)
    lean = rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(lean, plain)
    wanted = torch.autograd.grad(plain, (x, weight), upstream)
    found = torch.autograd.grad(lean, (x, weight), upstream)
    torch.testing.assert_close(found, wanted)


def test_rms_norm_that_is_compiled_has_autograds_gradients() -> None:
    norm = RMSNorm(7).double()
    norm.weight.data = draw(7, seed=1)
    x, upstream = draw(2, 3, 7).requires_grad_(), draw(2, 3, 7, seed=2)
    plain = torch.nn.functional.rms_norm(x, (7,), norm.weight, norm.eps)
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=1e-6)  # summed in float32
    wanted = torch.autograd.grad(plain, (x, norm.weight), upstream)
    found = torch.autograd.grad(compiled, (x, norm.weight), upstream)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_maximum_that_is_compiled_has_autograds_gradient() -> None:
    values, upstream = draw(2, 3, 5, 4).requires_grad_(), draw(2, 3, 4, seed=1)
    plain = values.amax(-2)
    compiled = torch.compile(patch_maximum, backend="aot_eager", fullgraph=True)(values)
    torch.testing.assert_close(compiled, plain, rtol=0, atol=0)
    wanted = torch.autograd.grad(plain, values, upstream)
    found = torch.autograd.grad(compiled, values, upstream)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_of_equal_points_one_has_the_gradient_of_a_compiled_maximum() -> None:
    values = torch.zeros(1, 1, 3, 2, requires_grad=True)
    torch.compile(patch_maximum, backend="aot_eager", fullgraph=True)(values).sum().backward()
    assert values.grad is not None
    assert values.grad.sum(-2).tolist() == [[[1.0, 1.0]]]
    assert values.grad.unique().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("chunk", [5, 10, 2**18], ids=["a row", "two rows", "all at once"])
def test_patch_cross_entropy_has_autograds_gradients(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven rows of five logits against three targets, in chunks that do and do not divide them."""
    monkeypatch.setattr(losses, "_CHUNK_ON_CPU", chunk)
    logits = draw(7, 5).float().requires_grad_()
    probs = draw(3, 5, seed=1).float().softmax(-1)
    index = torch.tensor([2, 0, 1, 1, 2, 0, 0])
    plain = -(probs[index] * (logits / 0.1).log_softmax(-1)).sum(-1).mean()
    lean = patch_cross_entropy(logits, probs, index, student_temperature=0.1)
    torch.testing.assert_close(lean, plain)
    wanted = torch.autograd.grad(3.0 * plain, logits)
    found = torch.autograd.grad(3.0 * lean, logits)
    torch.testing.assert_close(found, wanted)


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = draw(4, 6).to(torch.bfloat16).requires_grad_()
    probs = draw(4, 6, seed=1).float().softmax(-1)
    index = torch.arange(4)
    loss = patch_cross_entropy(logits, probs, index, student_temperature=0.1)
    wanted = patch_cross_entropy(logits.float(), probs, index, student_temperature=0.1)
    torch.testing.assert_close(loss, wanted)
    assert torch.autograd.grad(loss, logits)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_that_a_gpu_compiles_is_the_one_in_chunks(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradient, with a last chunk that is not full."""
    monkeypatch.setattr(losses, "_CHUNK_ON_CPU", 4 * 33)
    logits = draw(30, 33).to(dtype).requires_grad_()
    probs = draw(12, 33, seed=1).float().softmax(-1)
    index = torch.randint(0, 12, (30,), generator=torch.Generator().manual_seed(2))
    plain, chunked = (
        loss(logits, probs, index, 0.1) for loss in (plain_cross_entropy, chunked_cross_entropy)
    )
    torch.testing.assert_close(plain, chunked, rtol=2e-6, atol=0.0)
    wanted, found = (torch.autograd.grad(loss, logits)[0] for loss in (chunked, plain))
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted)


def test_on_a_cpu_the_loss_is_the_one_in_chunks_to_the_bit() -> None:
    logits = draw(30, 33).float().requires_grad_()
    probs, index = draw(30, 33, seed=1).float().softmax(-1), torch.arange(30)
    loss = patch_cross_entropy(logits, probs, index, student_temperature=0.1)
    chunked = chunked_cross_entropy(logits, probs, index, 0.1)
    assert torch.equal(loss, chunked)
    ours, theirs = (torch.autograd.grad(each, logits)[0] for each in (loss, chunked))
    assert torch.equal(ours, theirs)

"""Whether TF32 products in a frozen encoder move an evaluation: accuracies and features, beside other precisions.

TF32 multiplies numbers of which 10 bits of the mantissa are kept, and adds in float32. Here a CPU does so: it
rounds both factors of every product in the encoder; bfloat16 (7 bits) in the same way. What either changes is
compared with what another seed (other points and augmentation of each cloud) changes: an evaluation cannot tell
differences apart that are far smaller.

Run: ``python benchmarks/tf32.py`` (``--clouds 20`` for that many training clouds of each of the 15 classes).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pointdistill.data.benchmark_standins import ScanSizes, make_scanobjectnn_stand_in
from pointdistill.data.benchmarks.scanobjectnn import read_scanobjectnn
from pointdistill.engine.evaluation.classification import evaluate
from pointdistill.engine.evaluation.run import Evaluation
from pointdistill.engine.features.extract import extract_features
from pointdistill.engine.features.inputs import protocol_input
from pointdistill.engine.weights import BUNDLED
from pointdistill.engine.weights.encoders import load_encoder
from pointdistill.model.encoder import Encoder

KEPT_BITS = {"float32": 23, "TF32": 10, "bfloat16": 7}
PRODUCTS = {
    functional.linear,
    functional.scaled_dot_product_attention,
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
}


class RoundedProducts(TorchFunctionMode):
    """Rounds the factors of matrix products to fewer bits of mantissa."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.dropped = 23 - bits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        if self.dropped and func in PRODUCTS:
            args = tuple(self.rounded(a) if isinstance(a, Tensor) else a for a in args)
        return func(*args, **(kwargs or {}))

    def rounded(self, values: Tensor) -> Tensor:
        """To the nearest number of so many bits."""
        half, mask = 1 << (self.dropped - 1), -1 << self.dropped
        return ((values.contiguous().view(torch.int32) + half) & mask).view(torch.float32)


def rounding(bits: int) -> Encoder:
    """The program's own encoder, its products rounded."""
    encoder = load_encoder(BUNDLED)
    forward: Callable[..., Any] = encoder.forward

    def rounded(*arguments: Any, **named: Any) -> Any:
        with RoundedProducts(bits):
            return forward(*arguments, **named)

    encoder.forward = rounded  # type: ignore[method-assign]
    return encoder


def main(clouds: int) -> None:
    """Evaluate at each precision and at another seed."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "stand-in.zip")
        sizes = ScanSizes(train=clouds, test=max(1, clouds // 2))
        make_scanobjectnn_stand_in(path, splits=["OBJ-BG"], sizes=sizes)
        benchmark = read_scanobjectnn(path, "OBJ-BG")
    print(f"{len(benchmark.train)} clouds to train the probes, {len(benchmark.test)} to test")
    print(
        "| products | features moved | linear | logistic |\n| --- | --- | --- | --- |", flush=True
    )
    plain = None
    for name, bits, seed in (*((n, b, 0) for n, b in KEPT_BITS.items()), ("float32", 23, 1)):
        encoder = rounding(bits)
        inputs = protocol_input(benchmark.name, encoder.config)
        found = extract_features(encoder, benchmark.test.points, inputs=inputs, seed=seed, epoch=0)
        plain = found if plain is None else plain
        moved = (found - plain).norm() / (plain - plain.mean(0)).norm()
        protocols = Evaluation(protocols=("linear", "logistic"), seeds=(seed,), augmented_copies=1)
        results = evaluate(encoder, benchmark, protocols, name=name)
        figures = " | ".join(f"{result.accuracy.mean:.1f}" for result in results)
        print(f"| {name}{', another seed' if seed else ''} | {moved:.1e} | {figures} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clouds", type=int, default=60)
    main(parser.parse_args().clouds)

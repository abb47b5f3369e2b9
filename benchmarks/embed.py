"""Embedding clouds with the small encoder on two CPU threads, compared with an eager encoder of the same weights.

The baseline is what a competent user writes in PyTorch: batches of clouds, patches cut and embedded once with
batched operations, ``[x, max]`` concatenated and put through one linear layer, fused attention
(``scaled_dot_product_attention``), ``torch.no_grad``, two threads inside each operation. Both get the same
clouds, batch size and float32 weights. Rounds alternate; figures are medians, and the ratio is the median of the
rounds' ratios. The contribution of each change is measured on one thread by leaving out only that change.

Run: ``python benchmarks/embed.py``. ``python benchmarks/embed.py --memory 100000 --folder FOLDER`` measures the
memory of ``embed`` on builtin corpora of that many clouds, of a tenth and of a hundredth (Linux). If a folder is
given, the corpora stay there, so that another run does not build them again.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointdistill.data.corpus_building import build_corpus
from pointdistill.data.sources import SourceRequest, open_source
from pointdistill.engine.config.recipes import recipe
from pointdistill.engine.embedding.compute import (
    CPU_BATCH,
    FeatureMaker,
    inference_threads,
)
from pointdistill.engine.features import extract
from pointdistill.engine.weights.encoders import save_encoder
from pointdistill.model.encoder import Encoder

THREADS = 2
CLOUDS = 96
ROUNDS = 7


class Baseline(nn.Module):
    """The same function of the same weights, in plain PyTorch."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, points: Tensor) -> Tensor:
        """(B, 3D) CLS, mean and maximum of (B, N, 3) clouds."""
        config = self.encoder.config
        points = points - points.mean(1, keepdim=True)
        points = points / points.norm(dim=-1).amax(1)[:, None, None]
        offsets, centers = cut(points, config.patches, config.patch_points)
        tokens = self.embed_patches(offsets)
        positions = self.encoder.position_embedding(centers)
        cls = self.encoder.cls_token.expand(len(points), -1, -1)
        tokens = torch.cat([cls, tokens], 1)
        positions = torch.cat([torch.zeros_like(cls), positions], 1)
        for block in self.encoder.transformer.blocks:
            tokens = tokens + positions
            tokens = tokens + attend(block.attention.attention, block.attention.norm(tokens))
            tokens = tokens + block.mlp.mlp(block.mlp.norm(tokens))
        tokens = self.encoder.transformer.norm(tokens)
        patches = tokens[:, 1:]
        return torch.cat([tokens[:, 0], patches.mean(1), patches.amax(1)], 1)

    def embed_patches(self, offsets: Tensor) -> Tensor:
        embedding = self.encoder.patch_embedding
        local = embedding.stage_one(offsets)
        largest = local.amax(2, keepdim=True).expand_as(local)
        return embedding.stage_two(torch.cat([local, largest], -1)).amax(2)


def cut(points: Tensor, patches: int, members: int) -> tuple[Tensor, Tensor]:
    """Offsets (B, P, K, 3) and centres (B, P, 3): farthest points, then the nearest of each."""
    rows = torch.arange(len(points))
    chosen = torch.empty(len(points), patches, dtype=torch.int64)
    current = points.square().sum(-1).argmax(-1)
    nearest = torch.full(points.shape[:2], torch.inf)
    for step in range(patches):
        chosen[:, step] = current
        gap = (points - points[rows, current][:, None]).square().sum(-1)
        nearest = torch.minimum(nearest, gap)
        current = nearest.argmax(-1)
    centers = points[rows[:, None], chosen]
    distance = torch.cdist(centers, points, compute_mode="donot_use_mm_for_euclid_dist")
    index = distance.topk(members, largest=False, sorted=False).indices
    return points[rows[:, None, None], index] - centers[:, :, None], centers


def attend(attention: nn.Module, tokens: Tensor) -> Tensor:
    packed = attention.query_key_value(tokens).unflatten(-1, (3, attention.heads, -1))
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(query, key, value)
    return attention.project(mixed.transpose(1, 2).flatten(2))


def random_encoder(size: str) -> Encoder:
    """Weights as large as a trained model's, so that features and their differences are of order one."""
    torch.manual_seed(0)
    encoder = Encoder(recipe(size).encoder).eval().requires_grad_(requires_grad=False)
    for name, weight in encoder.named_parameters():
        if weight.ndim > 1:
            nn.init.trunc_normal_(weight, std=0.05)
        elif "norm" in name:
            nn.init.normal_(weight, 1.0, 0.1)
    return encoder


def ours(maker: FeatureMaker, clouds: list[np.ndarray], batch: int) -> np.ndarray:
    with inference_threads(maker) as threads:
        waiting = [threads.submit(clouds[i : i + batch]) for i in range(0, len(clouds), batch)]
        return np.stack([row.features for future in waiting for row in future.result()])


def shared(maker: FeatureMaker, clouds: list[np.ndarray], batch: int) -> None:
    for first in range(0, len(clouds), batch):
        maker(clouds[first : first + batch])


def plain(model: Baseline, clouds: list[np.ndarray], batch: int) -> np.ndarray:
    parts = [
        torch.from_numpy(np.stack(clouds[i : i + batch])) for i in range(0, len(clouds), batch)
    ]
    with torch.no_grad():
        return torch.cat([model(part) for part in parts]).numpy()


def seconds(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def speed(count: int, rounds: int, batch: int) -> None:
    torch.set_num_threads(THREADS)
    rng = np.random.default_rng(0)
    encoder = random_encoder("small")
    clouds = [rng.normal(size=(1024, 3)).astype(np.float32) for _ in range(count)]
    maker = FeatureMaker(encoder, "pooled", torch.device("cpu"), points=1024)
    model = Baseline(encoder)
    one, other = ours(maker, clouds[:batch], batch), plain(model, clouds[:batch], batch)
    print(f"{platform.machine()}, {THREADS} threads, torch {torch.__version__}")
    print(
        f"features: largest difference {np.abs(one - other).max():.1e}, of values to {other.max():.1f}"
    )
    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: ours(maker, clouds, batch),
        "ours, threads inside operations": lambda: shared(maker, clouds, batch),
        "eager": lambda: plain(model, clouds, batch),
    }
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in list(taken) if turn % 2 else list(taken)[::-1]:
            taken[name].append(seconds(contenders[name]))
    for name, times in taken.items():
        print(f"{name}: {count / statistics.median(times):.1f} clouds/s")
    ratios = [e / o for o, e in zip(taken["ours"], taken["eager"], strict=True)]
    print(
        f"ratio: {statistics.median(ratios):.2f} (rounds: {', '.join(f'{r:.2f}' for r in ratios)})"
    )


def contributions(rounds: int, batch: int) -> None:
    """Print each part beside its plain version, in milliseconds per cloud on one thread."""
    torch.set_num_threads(1)
    encoder = random_encoder("small")
    fast, model = extract.frozen_copy(encoder), Baseline(encoder)
    points = torch.randn(batch, 1024, 3, generator=torch.Generator().manual_seed(0))
    offsets, centers = cut(points, 64, 32)
    positions = encoder.position_embedding(centers)
    tokens = encoder.patch_embedding(offsets)
    rows: list[tuple[str, Callable[[], object]]] = [
        ("patches cut", lambda: cut(points, 64, 32)),
        ("patch embedding, eager: [x, max] joined", lambda: model.embed_patches(offsets)),
        ("  + the layer over max once a patch", lambda: encoder.patch_embedding(offsets)),
        ("  + norms and GELUs in place", lambda: at_once(fast.patch_embedding, offsets)),
        ("  + a few patches at a time", lambda: fast.patch_embedding(offsets)),
        ("transformer, eager", lambda: encoder.transformer(tokens, positions)),
        (
            "  + in place, folded norms, fused residuals",
            lambda: fast.transformer(tokens, positions),
        ),
    ]
    taken: dict[str, list[float]] = {name: [] for name, _ in rows}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, function in rows:
                taken[name].append(seconds(function))
    print("\nmilliseconds a cloud on one thread")
    for name, times in taken.items():
        print(f"{name:46} {1000 * statistics.median(times) / batch:6.1f}")


def at_once(embedding: nn.Module, offsets: Tensor) -> Tensor:
    """The patch embedding of all patches together, as if the cache were unlimited."""
    cached, extract.CACHED_VALUES = extract.CACHED_VALUES, sys.maxsize
    try:
        return embedding(offsets)
    finally:
        extract.CACHED_VALUES = cached


MEMORY = """
import sys
from pathlib import Path
from pointdistill.engine.embedding.embed import EmbedRequest, embed

corpus, output, encoder = sys.argv[1:]
report = embed(EmbedRequest(paths=[Path(corpus)], output=Path(output), encoder=encoder, draws=1, turns=1))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(report.shapes, int(status["VmHWM"].split()[0]) / 1024)
"""


def memory(most: int, kept: Path | None) -> None:
    """Print the peak memory of a fresh process that embeds a hundredth, a tenth, and all of ``most`` clouds.

    Clouds have 256 points and the encoder is tiny: memory per batch depends on the encoder, but its growth with
    the number of clouds does not.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = (kept or Path(temporary)).resolve()
        encoder = folder / "encoder"
        if not encoder.exists():
            save_encoder(random_encoder("tiny"), encoder)
        print("| clouds | peak, MiB | bytes a cloud more than above | clouds/s |")
        print("| --- | --- | --- | --- |")
        before: tuple[int, float] | None = None
        for clouds in (most // 100, most // 10, most):
            corpus, output = folder / f"corpus-{clouds}", folder / f"embedding-{clouds}.npz"
            build_corpus(
                open_source("builtin", SourceRequest(shapes=clouds)), corpus, points=256, seed=0
            )
            output.unlink(missing_ok=True)
            begun = time.perf_counter()
            told = subprocess.run(
                [sys.executable, "-c", MEMORY, str(corpus), str(output), str(encoder)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                cwd=folder,
            ).stdout.split()
            taken, now = time.perf_counter() - begun, (int(told[0]), float(told[1]))
            more = "" if before is None else f"{growth(before, now):.0f}"
            print(f"| {now[0]:,} | {now[1]:.0f} | {more} | {now[0] / taken:.0f} |", flush=True)
            before = now


def growth(before: tuple[int, float], now: tuple[int, float]) -> float:
    """Bytes per cloud, from the clouds and MiB of a smaller and a larger run."""
    return (now[1] - before[1]) * 2**20 / (now[0] - before[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", type=int, metavar="CLOUDS")
    parser.add_argument("--folder", type=Path, help="where --memory keeps its corpora")
    parser.add_argument("--clouds", type=int, default=CLOUDS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--batch", type=int, default=CPU_BATCH)
    given = parser.parse_args()
    if given.memory:
        memory(given.memory, given.folder)
    else:
        speed(given.clouds, given.rounds, given.batch)
        contributions(given.rounds, given.batch)

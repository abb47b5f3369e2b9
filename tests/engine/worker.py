"""A run of the micro model in a process of its own, to be killed or to be one of several.

``python -m tests.engine.worker '{"run": …}'``; each process also leaves in ``<run>.rank-<r>.json`` how many there
were and which shapes it saw, and may save the gradients of its first step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from pointdistill.engine.config.config import PretrainConfig
from pointdistill.engine.pretraining import execution, step
from pointdistill.engine.pretraining.checkpoints import list_checkpoints
from pointdistill.engine.pretraining.loader import Batch
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.run_folder import CHECKPOINTS
from pointdistill.engine.pretraining.trainer import RunOptions
from pointdistill.engine.runtime.optimizer import whole
from pointdistill.errors import PointDistillError
from pointdistill.model.distillation import Views
from pointdistill.reporter import StepRecord
from tests.engine.conftest import MemoryCorpus, micro_config
from tests.recorder import OnStep


def shared_config(steps: int = 6) -> PretrainConfig:
    """Without stochastic depth, whose draws belong to a process."""
    config = micro_config()
    return replace(config, encoder=replace(config.encoder, drop_path=0.0), steps=steps)


def shapes(poison: int | None = None, how: str = "nan") -> MemoryCorpus:
    """The corpus of the fixture, perhaps with a shape that cannot be trained on."""
    rng = np.random.default_rng(0)
    corpus = MemoryCorpus([rng.normal(size=(60 + i, 3)).astype(np.float32) for i in range(20)])
    if poison is not None:
        if how == "empty":
            corpus.clouds[poison] = corpus.clouds[poison][:0]
        else:
            corpus.clouds[poison][0, 0] = float(how)
    return corpus


def note_shapes(path: Path) -> None:
    """Write down which shapes this process is given."""
    seen: list[list[int]] = []
    views_of = execution.ViewMaker.__call__

    def noting(maker: execution.ViewMaker, batch: Batch) -> Views:
        seen.append(batch.index.tolist())
        world = int(os.environ.get("WORLD_SIZE", "1"))
        path.write_text(json.dumps({"processes": world, "shapes": seen}))
        return views_of(maker, batch)

    execution.ViewMaker.__call__ = noting  # type: ignore[method-assign]


def keep_gradients(path: Path, rank: int) -> None:
    """Save the gradients of the first step, as they are before they are clipped."""
    clip = step.clip_gradients

    def keeping(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
        kept = list(parameters)
        found = {f"{n:03d}": whole(p.grad) for n, p in enumerate(kept) if p.grad is not None}
        if rank == 0 and not path.exists():
            save_file({n: g.detach().clone().contiguous() for n, g in found.items()}, path)
        return clip(kept, max_norm)

    step.clip_gradients = keeping


def kill_before(name: str, call: str) -> None:
    """End this process, as a lost machine would, just before the given call of a function that writes the run."""
    if name == "step":
        return
    module, function = name.split(".")
    place = import_module(f"pointdistill.engine.pretraining.{module}")
    real, calls = getattr(place, function), []

    def counting(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) == int(call):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    setattr(place, function, counting)


def main(asked: dict[str, Any]) -> int:
    run, rank = Path(asked["run"]), int(os.environ.get("RANK", "0"))
    note_shapes(run.with_name(f"{run.name}.rank-{rank}.json"))
    if "gradients" in asked:
        keep_gradients(Path(asked["gradients"]), rank)

    if "kill_at" in asked:
        kill_before(*asked["kill_at"].split(":"))
    taken: list[int] = []

    def report(record: StepRecord) -> None:
        taken.append(record.step)
        if asked.get("kill_at") == f"step:{len(taken)}":
            os.kill(os.getpid(), signal.SIGKILL)
        if asked.get("signal") == [rank, record.step]:
            os.kill(os.getpid(), signal.SIGTERM)

    config = shared_config(asked.get("steps", 6))
    if "batches" in asked:
        config = replace(config, batch_size=asked["batches"][rank])
    resume = asked.get("resume", False) and bool(list_checkpoints(run / CHECKPOINTS))
    try:
        result = pretrain(
            config,
            corpus=shapes(asked.get("poison"), asked.get("how", "nan")),
            run=run,
            resume=resume,
            options=RunOptions(**{"device": "cpu", "log_every": 1} | asked.get("options", {})),
            reporter=OnStep(report),
        )
    except PointDistillError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 130 if result.interrupted else 0


def nursery() -> None:
    """For each line of the input begin a run in a fork, and say how it ended.

    Loading torch once instead of for every kill saves a minute.
    """
    import_module("torch._dynamo")  # what the first step would load
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(main(json.loads(line)))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(main(json.loads(sys.argv[1])))
    nursery()

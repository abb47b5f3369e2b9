"""The protocols that train an encoder with the labels, for one seed, and votes on their test clouds.

Sizes: n test clouds, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pointdistill.data.benchmarks.records import Benchmark, LabelledClouds
from pointdistill.engine.devices import threads_for
from pointdistill.engine.evaluation.probe import Score, score_predictions
from pointdistill.engine.evaluation.probe.training import mean_logits
from pointdistill.engine.finetuning.classification import (
    EVALUATION_BATCH,
    patchify_from_outermost,
    train_classifier,
)
from pointdistill.engine.finetuning.recipes import recipe_for
from pointdistill.engine.finetuning.training_file import TrainingFile
from pointdistill.engine.inputs import ProtocolInput, cloud_batches, voting_input
from pointdistill.model.classifier import Classifier
from pointdistill.model.encoder import Encoder
from pointdistill.model.patches import to_unit_sphere

FROZEN_COST = 1 / 3
"""Of an epoch that leaves the encoder alone, against one that trains it: a forward pass without its backward."""


def training_cost(protocol: str, benchmark: str, *, epochs: int | None, done: int = 0) -> float:
    """Epochs still to come after ``done``, those with a frozen encoder counted at their lower cost."""
    recipe = recipe_for(benchmark, protocol)
    total = epochs or recipe.epochs
    frozen = round(total * recipe.frozen_epochs / recipe.epochs)
    return max(0, frozen - done) * FROZEN_COST + total - max(frozen, done)


def trained_score(
    encoder: Encoder,
    benchmark: Benchmark,
    protocol: str,
    *,
    inputs: ProtocolInput,
    seed: int,
    epochs: int | None,
    votes: int,
    device: torch.device | str,
    report: Callable[[int], None],
    file: TrainingFile | None = None,
) -> Score:
    """Train under ``finetune`` or ``scratch``; the last epoch's score, the best epoch beside it.

    Args:
        encoder: copied, not changed.
        benchmark: with its official split.
        protocol: one of ``TRAINED``.
        inputs: points and patches a cloud, and the augmentation in training.
        seed: of everything random.
        epochs: instead of the recipe's.
        votes: versions of each test cloud; with more than one no best epoch is reported, since every epoch was
            tested without a vote.
        device: where to train.
        report: told the epochs done.
        file: where the training is kept while it lasts; gone on with if it exists.

    Raises:
        KeyboardInterrupt: if ``file`` says to stop; everything is in it then.
    """
    result = train_classifier(
        encoder,
        benchmark.train,
        benchmark.test,
        classes=len(benchmark.classes),
        recipe=recipe_for(benchmark.name, protocol),
        inputs=inputs,
        seed=seed,
        epochs=epochs,
        device=device,
        report=lambda record: report(record.epoch),
        file=file,
    )
    logits = voted_logits(
        result.classifier, benchmark.test, inputs, seed=seed, votes=votes, device=device
    )
    score = score_predictions(logits.argmax(1), torch.from_numpy(benchmark.test.labels))
    if votes > 1:
        return score
    best = result.score
    return replace(score, best_accuracy=best.best_accuracy, best_epoch=best.best_epoch)


def voted_logits(
    classifier: Classifier,
    clouds: LabelledClouds,
    inputs: ProtocolInput,
    *,
    seed: int,
    votes: int,
    device: torch.device | str,
) -> Tensor:
    """(n, C) logits on the CPU, averaged over the clouds as they are and ``votes`` - 1 further versions."""
    plain = _logits(classifier, clouds, inputs, seed=seed, epoch=None, device=device)
    other = voting_input(inputs)
    further = [
        _logits(classifier, clouds, other, seed=seed, epoch=vote, device=device)
        for vote in range(votes - 1)
    ]
    return mean_logits([plain, *further])


def _logits(
    classifier: Classifier,
    clouds: LabelledClouds,
    inputs: ProtocolInput,
    *,
    seed: int,
    epoch: int | None,
    device: torch.device | str,
) -> Tensor:
    """(n, C) logits of one version of the clouds, by a classifier in evaluation mode."""
    config, device = classifier.encoder.config, torch.device(device)
    found = []
    with torch.inference_mode(), threads_for(config.width, device):
        for _, batch in cloud_batches(
            clouds.points,
            inputs,
            seed=seed,
            epoch=epoch,
            batch_size=EVALUATION_BATCH,
            device=device,
        ):
            patches = patchify_from_outermost(to_unit_sphere(batch), inputs, config.patch_points)
            found.append(classifier(patches).cpu())
    return torch.cat(found)

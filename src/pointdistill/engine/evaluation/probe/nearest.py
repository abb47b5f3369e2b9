"""k nearest neighbours by cosine similarity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pointdistill.engine.evaluation.probe.samples import Samples, Score, score_predictions
from pointdistill.errors import ConfigError

NEIGHBOURS = 5
"""Votes for each test cloud in the published protocol."""

_ROWS = 1024  # Test rows compared at once: 50 MB of similarities against 11,416 training clouds.


def nearest_neighbour_probe(
    train: Samples, test: Samples, *, neighbours: int = NEIGHBOURS
) -> Score:
    """Name each test cloud by a vote of its nearest training clouds.

    Similarity is the cosine; each neighbour has one vote whatever its distance. Of classes with
    equally many votes, the one with the nearest voter wins.

    Args:
        train: the voters; at least ``neighbours`` of them.
        test: features of the same width.
        neighbours: votes for each test cloud.

    Raises:
        ConfigError: if there are fewer training clouds than votes.
    """
    voters = normalize(train.features, dim=1)
    ranked = vote(test.features, voters, train.labels, neighbours=neighbours)
    return score_predictions(ranked[:, 0], test.labels)


def vote(rows: Tensor, voters: Tensor, labels: Tensor, *, neighbours: int = NEIGHBOURS) -> Tensor:
    """The classes that the neighbours of each row name, most votes first, then the nearest voter's.

    Sizes: b rows, n voters, F features, k neighbours.

    Args:
        rows: (b, F), of any length.
        voters: (n, F), rows of length 1.
        labels: (n,) int64 of the voters.
        neighbours: k.

    Returns:
        (b, k) int64 classes, -1 after the last that has a vote.

    Raises:
        ConfigError: if there are fewer voters than votes.
    """
    if not 1 <= neighbours <= len(labels):
        msg = (
            f"neighbours must lie between 1 and the {len(labels)} training clouds, got {neighbours}"
        )
        raise ConfigError(msg)
    ranked = []
    for some in normalize(rows, dim=1).split(_ROWS):
        nearest = (some @ voters.T).topk(neighbours, dim=1, sorted=True).indices
        ranked.append(_rank(labels[nearest]))
    return torch.cat(ranked)


def _rank(named: Tensor) -> Tensor:
    """The distinct classes of each row of (b, k), named from near to far, by votes; -1 fills the rest."""
    k = named.shape[1]
    same = named[:, :, None] == named[:, None, :]
    repeated = same.tril(-1).any(dim=2)
    rank = torch.arange(k, device=named.device)
    # One number to sort by: votes weigh k each, nearness less than one vote, and a repeated name goes last.
    worth = torch.where(repeated, -1, same.sum(dim=2) * k - rank)
    order = worth.argsort(dim=1, descending=True)
    return named.masked_fill(repeated, -1).gather(1, order)

"""k nearest neighbours by cosine similarity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from pointdistill.engine.probe.samples import Samples, Score, score_predictions
from pointdistill.errors import ConfigError

_ROWS = 1024  # Test rows compared at once: 50 MB of similarities against 11,416 training clouds.


def nearest_neighbour_probe(train: Samples, test: Samples, *, neighbours: int = 5) -> Score:
    """Name each test cloud by a vote of its nearest training clouds.

    Similarity is the cosine; each neighbour has one vote whatever its distance. Of classes with
    equally many votes, the one with the nearest voter wins.

    Args:
        train: the voters; at least ``neighbours`` of them.
        test: features of the same width.
        neighbours: votes for each test cloud; the published protocol has 5.

    Raises:
        ConfigError: if there are fewer training clouds than votes.
    """
    if not 1 <= neighbours <= len(train.labels):
        msg = (
            f"neighbours must lie between 1 and the {len(train.labels)} training clouds, "
            f"got {neighbours}"
        )
        raise ConfigError(msg)
    classes = int(train.labels.max()) + 1
    voters = normalize(train.features, dim=1)
    predicted = []
    for rows in torch.split(normalize(test.features, dim=1), _ROWS):
        nearest = (rows @ voters.T).topk(neighbours, dim=1, sorted=True).indices
        predicted.append(_elect(train.labels[nearest], classes))
    return score_predictions(torch.cat(predicted), test.labels)


def _elect(votes: Tensor, classes: int) -> Tensor:
    """The winning class of each row of (n, k) votes, the nearest voter's first."""
    k = votes.shape[1]
    counts = one_hot(votes, classes).sum(dim=1).double()
    # Below one vote, so it only breaks ties; written from far to near, so that a class keeps its
    # nearest.
    for rank in reversed(range(k)):
        first = votes[:, rank : rank + 1]
        whole = counts.gather(1, first).floor()
        counts.scatter_(1, first, whole + (k - rank) / (k + 1))
    return counts.argmax(dim=1)

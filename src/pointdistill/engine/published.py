"""Published figures of the method, to stand beside ours: AsymDSD (arXiv 2506.21724), no voting.

A figure is looked up by model, benchmark, split and protocol, and never lent to another protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pointdistill.data.files import read_json

CLS_SMALL = "AsymSD-CLS-S (ShapeNet)"
MPM_SMALL = "AsymSD-MPM-S (ShapeNet)"
SMALL = "AsymDSD-S (ShapeNet)"
SMALL_MIXTURE = "AsymDSD-S (Mixture)"
BASE_MIXTURE = "AsymDSD-B (Mixture)"
SCRATCH_SMALL = "ViT-S from scratch"

# Accuracies in percent, in the columns' order: ModelNet40, then ScanObjectNN's three splits.
_COLUMNS = (
    ("ModelNet40", None),
    ("ScanObjectNN", "OBJ-BG"),
    ("ScanObjectNN", "OBJ-ONLY"),
    ("ScanObjectNN", "PB-T50-RS"),
)
_ROWS = {
    ("scratch", SCRATCH_SMALL): (92.9, 87.6, 86.7, 83.5),
    ("finetune", CLS_SMALL): (93.6, 92.77, 90.53, 88.72),
    ("finetune", MPM_SMALL): (94.0, 92.77, 91.39, 88.58),
    ("finetune", SMALL): (94.1, 94.32, 91.91, 90.53),
    ("finetune", SMALL_MIXTURE): (94.4, 97.07, 94.83, 92.89),
    ("finetune", BASE_MIXTURE): (94.7, 96.73, 94.32, 93.72),
    ("linear", CLS_SMALL): (91.78, 90.67, 88.31, 83.19),
    ("linear", MPM_SMALL): (93.55, 89.00, 87.80, 81.04),
    ("linear", SMALL): (92.52, 89.95, 88.73, 83.33),
    ("linear", SMALL_MIXTURE): (93.98, 95.22, 94.51, 91.31),
    ("linear", BASE_MIXTURE): (93.76, 96.16, 93.44, 91.96),
    # From the ablations, which name PB-T50-RS alone.
    ("svm", CLS_SMALL): (None, None, None, 82.27),
    ("svm", MPM_SMALL): (None, None, None, 81.06),
    ("svm", SMALL): (None, None, None, 82.34),
}

_MODELS = {
    ("cls", "small", "ShapeNet"): CLS_SMALL,
    ("mpm", "small", "ShapeNet"): MPM_SMALL,
    ("dual", "small", "ShapeNet"): SMALL,
    ("dual", "small", "Mixture"): SMALL_MIXTURE,
    ("dual", "base", "Mixture"): BASE_MIXTURE,
}


@dataclass(frozen=True, slots=True)
class PublishedFigure:
    """An accuracy that the paper reports."""

    model: str
    """Whose it is, with what that model was pretrained on."""

    accuracy: float
    """Overall accuracy on the official test split, in percent."""


def comparison_model(*, size: str, mode: str, sources: int) -> str | None:
    """The published model to set beside an encoder: a point of reference that tables print by name.

    Args:
        size: ``small``, ``base`` or ``large``; any other, such as ``tiny``, is set beside small.
        mode: ``dual``, ``cls`` or ``mpm``.
        sources: how many sources the pretraining corpus had: one is compared with ShapeNet, more
            with the Mixture.

    Returns:
        A name for ``published_figure``, or None where nothing of that size and mode was published.
    """
    if size == "large":
        return None
    if size == "base":
        return _MODELS.get((mode, "base", "Mixture"))
    corpus = "Mixture" if sources > 1 else "ShapeNet"
    return _MODELS.get((mode, "small", corpus), _MODELS.get((mode, "small", "ShapeNet")))


def comparison_for(encoder: Path) -> str | None:
    """``comparison_model`` of an encoder folder, from what its ``config.json`` says of its training."""
    config = read_json(encoder / "config.json")
    training = config.get("training", {})
    return comparison_model(
        size=str(training.get("name")),
        mode=str(training.get("mode")),
        sources=len(config.get("sources", [])),
    )


def published_figure(
    model: str | None, *, benchmark: str, split: str | None, protocol: str
) -> PublishedFigure | None:
    """What the paper reports for a model under exactly this protocol, or None.

    Args:
        model: a name from this module, or None.
        benchmark: ``ModelNet40`` or ``ScanObjectNN``.
        split: ScanObjectNN's, such as ``PB-T50-RS``; None for ModelNet40.
        protocol: ``linear``, ``svm``, ``finetune`` or ``scratch``; others have no figures.
    """
    row = _ROWS.get((protocol, model)) if model is not None else None
    if row is None or model is None or (benchmark, split) not in _COLUMNS:
        return None
    accuracy = row[_COLUMNS.index((benchmark, split))]
    return None if accuracy is None else PublishedFigure(model, accuracy)

"""Published figures of the method, to stand beside ours: AsymDSD (arXiv 2506.21724), no voting.

A figure is looked up by model, benchmark, split and protocol, and never lent to another protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pointdistill.engine.exchange.encoders import read_facts

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

_FEWSHOT = "ModelNet40 few-shot"
_LVIS = "Objaverse-LVIS"

_OTHERS: Mapping[
    tuple[str, str | None, str, str], tuple[float, float | None, tuple[float, ...]]
] = {
    (_FEWSHOT, "5w10s", "finetune", SMALL): (96.1, 2.8, ()),
    (_FEWSHOT, "5w20s", "finetune", SMALL): (98.8, 1.3, ()),
    (_FEWSHOT, "10w10s", "finetune", SMALL): (94.4, 3.5, ()),
    (_FEWSHOT, "10w20s", "finetune", SMALL): (95.8, 3.3, ()),
    ("ShapeNetPart", None, "parts", SMALL): (86.0, None, (84.4,)),
    (_LVIS, None, "linear", SMALL_MIXTURE): (37.75, None, (57.43, 64.70)),
    (_LVIS, None, "linear", BASE_MIXTURE): (38.36, None, (58.22, 65.43)),
    (_LVIS, None, "knn", SMALL_MIXTURE): (33.30, None, (49.77, 54.27)),
    (_LVIS, None, "knn", BASE_MIXTURE): (33.68, None, (50.24, 54.68)),
}
# Benchmark, split, protocol and model: main figure, deviation, further figures.

_MODELS = {
    ("cls", "small", "ShapeNet"): CLS_SMALL,
    ("mpm", "small", "ShapeNet"): MPM_SMALL,
    ("dual", "small", "ShapeNet"): SMALL,
    ("dual", "small", "Mixture"): SMALL_MIXTURE,
    ("dual", "base", "Mixture"): BASE_MIXTURE,
}


@dataclass(frozen=True, slots=True)
class PublishedFigure:
    """What the paper reports, in percent."""

    model: str
    """Whose it is, with what that model was pretrained on."""

    accuracy: float
    """The protocol's main figure on the official test split: overall accuracy, instance mIoU, or top-1."""

    deviation: float | None = None
    """Over the folds of few-shot."""

    further: tuple[float, ...] = ()
    """The protocol's other figures: class mIoU, or top-3 and top-5."""

    def __str__(self) -> str:
        """As in ``96.10 ± 2.80`` or ``86.00 / 84.40``."""
        main = f"{self.accuracy:.2f}"
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return " / ".join([main + spread, *(f"{value:.2f}" for value in self.further)])


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
    """``comparison_model`` of an encoder's folder or file, from what it says of its training."""
    config = read_facts(encoder)
    training = config.get("training", {})
    return comparison_model(
        size=str(training.get("name")).partition("-")[0],  # of a recipe such as small-shapenet
        mode=str(training.get("mode")),
        sources=len(config.get("sources", [])),
    )


def published_figure(
    model: str | None, *, benchmark: str, split: str | None, protocol: str
) -> PublishedFigure | None:
    """What the paper reports for a model under exactly this protocol, or None.

    Args:
        model: a name from this module, or None.
        benchmark: by its name in results, such as ``ScanObjectNN``.
        split: such as ``PB-T50-RS`` or ``5w10s``; None where there is one only.
        protocol: ``linear``, ``svm``, ``knn``, ``finetune``, ``scratch`` or ``parts``. From scratch, the figure is
            that of the paper's own ViT-S, whatever the model.
    """
    if protocol == "scratch":
        model = SCRATCH_SMALL
    if model is None:
        return None
    if (benchmark, split) in _COLUMNS:
        row = _ROWS.get((protocol, model))
        accuracy = row[_COLUMNS.index((benchmark, split))] if row else None
        return None if accuracy is None else PublishedFigure(model, accuracy)
    other = _OTHERS.get((benchmark, split, protocol, model))
    return None if other is None else PublishedFigure(model, *other)

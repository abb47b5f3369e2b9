"""Writes the model card (README) of shared weights: their use, training, results and licences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pointdistill.data.sources import SOURCES
from pointdistill.engine.evaluation.results import Result
from pointdistill.engine.pretraining.run_folder import unfinished_steps, warnings_of
from pointdistill.engine.reports.tables import Table
from pointdistill.engine.weights.licences import SourceTerms, Terms, card_licence, read_ledger

LIBRARY = "pointdistill"
TAGS = ("point-cloud", "3d", "self-supervised-learning", "asymdsd")
PAPER = "https://arxiv.org/abs/2506.21724"
_HUB_DATASETS = "https://huggingface.co/datasets/"

_TRAINING = (
    ("recipe", ("name",), ("recipe", "name")),
    ("mode", ("mode",)),
    ("steps", ("step",), ("steps",)),
    ("epochs", ("epochs",)),
    ("batch size", ("batch_size",)),
    ("seed", ("seed",)),
    ("data", ("data_name",)),
    ("shapes of the corpus", ("corpus", "shapes")),
    ("content of the corpus", ("corpus", "fingerprint")),
    ("imported from", ("imported", "file")),
    ("its SHA-256", ("imported", "sha256")),
    ("branch", ("imported", "branch")),
)
"""Rows of the training table: a label, and the paths of keys in ``config.json`` that may hold the value."""


_FIGURES = {
    "accuracy": "accuracy",
    "class_accuracy": "mean over classes",
    "best_epoch_accuracy": "accuracy of the best epoch",
    "instance_miou": "instance mIoU",
    "class_miou": "class mIoU",
    "best_epoch_instance_miou": "instance mIoU of the best epoch",
}
"""Entries of a fine-tuned model's score, with their labels on the card."""

_STAND_IN = "A stand-in is data made by pointdistill in a benchmark's layout; its figures are not the benchmark's."


@dataclass(frozen=True, slots=True)
class ModelKind:
    """How a card describes one kind of model."""

    noun: str
    load: str
    """Python code that loads ``model`` from ``repository``."""

    use: str
    """Python code that calls it on ``points``; ``{category}`` is replaced by a category's name."""

    purpose: str
    """What it can and cannot be used for."""


ENCODER = ModelKind(
    noun="encoder",
    load="model = pointdistill.load_encoder({repository!r})",
    use="features = model(torch.from_numpy(points)[None])\n"
    "features.cls, features.patches, features.centers  # (1, D), (1, P, D), (1, P, 3)",
    purpose="Features of single 3-D objects for search, clustering, classification and segmentation, frozen or "
    "fine-tuned. It was trained on single objects with z up: not on whole scenes, and not on colour.",
)
CLASSIFIER = ModelKind(
    noun="classifier",
    load="model = pointdistill.load_classifier({repository!r})",
    use="prediction = model(torch.from_numpy(points)[None])\n"
    "prediction.classes, prediction.probabilities  # names, (1, C)",
    purpose="Telling apart the classes that it was trained on, in objects like those of its training data. It "
    "gives an answer for every object, even one of a class that it does not know.",
)
SEGMENTER = ModelKind(
    noun="segmenter",
    load="model = pointdistill.load_segmenter({repository!r})",
    use="prediction = model(torch.from_numpy(points)[None], {category!r})  # one of model.categories\n"
    "prediction.parts, prediction.part_names  # a label at every point, the labels' names",
    purpose="Naming the parts of objects of the categories that it was trained on.",
)
KINDS = {
    "pointdistill-encoder": ENCODER,
    "pointdistill-classifier": CLASSIFIER,
    "pointdistill-segmenter": SEGMENTER,
}
"""The kind of a model, by the format in its ``config.json``."""


def model_card(
    repository: str,
    described: Mapping[str, Any],
    results: Sequence[Result] = (),
) -> str:
    """The text of ``README.md``, with its YAML header.

    Args:
        repository: ``owner/name``.
        described: the folder's ``config.json``; for an encoder with its complete training record.
        results: scores of an encoder; a fine-tuned model's score is in its ``config.json``.
    """
    kind = KINDS[described["format"]]
    sources = read_ledger(described.get("sources"))
    parts = [
        _header(sources),
        f"# {repository.partition('/')[2]}",
        _summary(kind, described),
        _section("Use", _code(kind, repository, described) + f"\n\n{kind.purpose}"),
        _section("Training", _training(described)),
        _section("Results", _results(results) if kind is ENCODER else _score(described)),
        _section("Licences", _licences(sources)),
    ]
    return "\n\n".join(parts) + "\n"


def _header(sources: list[SourceTerms]) -> str:
    """The YAML that the Hub reads."""
    from huggingface_hub import ModelCardData

    licence = card_licence(sources)
    extra: dict[str, Any] = {}
    if licence.name is not None:
        extra = {"license_name": licence.name, "license_link": "README.md"}
    data = ModelCardData(
        license=licence.identifier,
        **extra,
        library_name=LIBRARY,
        tags=list(TAGS),
        datasets=_hub_datasets(sources) or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _hub_datasets(sources: Iterable[SourceTerms]) -> list[str]:
    """The Hub's names of those sources that are datasets there."""
    origins = {info.name: info.origin for info in SOURCES}
    used = {origins.get(source.name, "") for source in sources}
    return sorted(o.removeprefix(_HUB_DATASETS) for o in used if o.startswith(_HUB_DATASETS))


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _summary(kind: ModelKind, described: Mapping[str, Any]) -> str:
    model = described.get("model")
    model = model if isinstance(model, Mapping) else described
    size = model.get("encoder")
    size = size if isinstance(size, Mapping) else {}
    sizes = ", ".join(f"{n} {_plain(size[n])}" for n in ("width", "depth", "heads") if n in size)
    classes = model.get("classes")
    names = f" Classes: {', '.join(map(_plain, classes))}." if isinstance(classes, list) else ""
    return (
        f"{'An' if kind is ENCODER else 'A'} {kind.noun} of 3-D shapes (point clouds and meshes), pretrained "
        f"without labels by asymmetric dual self-distillation ([AsymDSD, NeurIPS 2025]({PAPER})) with pointdistill"
        f"{f': {sizes}' if sizes else ''}.{names}"
    )


def load_line(described: Mapping[str, Any], repository: str) -> str:
    """Python code that loads the model in a repository."""
    return KINDS[described["format"]].load.format(repository=repository)


def _code(kind: ModelKind, repository: str, described: Mapping[str, Any]) -> str:
    use = kind.use.format(category=_category(described)) if kind is SEGMENTER else kind.use
    return (
        f"```python\nimport pointdistill\nimport torch\n\n"
        f"{load_line(described, repository)}\n"
        'points = pointdistill.sample_surface("chair.obj", 1024, seed=0, up="y")  # y is up in the file\n'
        f"{use}\n```\n\n"
        "Any unit and place within float32, z up. Weights are safetensors; nothing in this repository is run when "
        "it is loaded."
    )


def _category(described: Mapping[str, Any]) -> str:
    """A category for the example: that of its file, ``chair``, if the segmenter knows it, else its first."""
    model = described.get("model")
    known = model.get("categories") if isinstance(model, Mapping) else None
    names = [name for name in known if isinstance(name, str)] if isinstance(known, list) else []
    return "chair" if "chair" in names or not names else names[0]


def _training(described: Mapping[str, Any]) -> str:
    training = described.get("training")
    rows = []
    for label, *places in _TRAINING:
        value = next((v for v in (_at(training, place) for place in places) if v is not None), None)
        if value is not None:
            rows.append((label, _plain(value)))
    steps = unfinished_steps(training)
    if steps is not None:
        unfinished = f"{steps[0]} of {steps[1]} steps, unfinished"
        rows = [(label, unfinished if label == "steps" else value) for label, value in rows]
    if not rows:
        return "How these weights were trained was not recorded."
    table = Table("", ("setting", "value"), tuple(rows)).markdown().partition("\n\n")[2]
    warned = "".join(f"\n\n**Warning of the training:** {_plain(w)}" for w in warnings_of(training))
    return table.strip() + "\n\nThe whole configuration is in `config.json`." + warned


def _at(value: Any, path: tuple[str, ...]) -> Any:
    """The text or number at a path of keys, or None."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def _results(results: Sequence[Result]) -> str:
    """A table of the scores; rows on stand-in data are marked."""
    if not results:
        return "None were recorded for these weights. `pointdistill evaluate` measures them."
    columns = ("data", "protocol", "points", "result %", "repeated")
    notes = ["Figures of the last epoch, on the test split, in percent."]
    if any(result.stand_in for result in results):
        notes.append(_STAND_IN)
    rows = tuple(_result_row(result) for result in results)
    return Table("", columns, rows, tuple(notes)).markdown().strip().partition("\n\n")[2]


def _result_row(result: Result) -> tuple[str, ...]:
    data = result.data_name + (f", {result.split}" if result.split else "")
    if result.stand_in and "stand-in" not in data:
        data += " (stand-in)"
    count = len(result.seeds)
    over = result.repeated_over.removesuffix("s") if count == 1 else result.repeated_over
    first, second = result.metrics
    figures = f"{first} {result.accuracy}, {second} {result.class_accuracy}"
    cells = (data, result.label, result.points, figures, f"{count} {over}")
    return tuple(_plain(cell) for cell in cells)


def _score(described: Mapping[str, Any]) -> str:
    """A table of a fine-tuned model's score on the test split of its own data."""
    score, training = described.get("score"), described.get("training")
    rows = [
        (label, f"{value:.2f}")
        for key, label in _FIGURES.items()
        if isinstance(value := _at(score, (key,)), int | float)
    ]
    categories = score.get("by_category") if isinstance(score, Mapping) else None
    rows += [
        (f"IoU of {_plain(name)}", f"{value:.2f}")
        for name, value in (categories.items() if isinstance(categories, Mapping) else ())
        if isinstance(value, int | float)
    ]
    if not rows:
        return "None were recorded for these weights."
    data, epochs = _at(training, ("data_name",)), _at(training, ("epochs",))
    notes = [
        f"On the test split of {_plain(data or 'its data')}, after the last of {_plain(epochs or '-')} epochs. "
        "The best epoch is chosen on the test shapes: a bound, not a result."
    ]
    if isinstance(training, Mapping) and training.get("stand_in"):
        notes.append(_STAND_IN)
    table = Table("", ("figure", "%"), tuple(rows), tuple(notes))
    return table.markdown().strip().partition("\n\n")[2]


def _licences(sources: list[SourceTerms]) -> str:
    """Every source with its licence, non-commercial ones in bold, and the consequences for the weights."""
    if not sources:
        return "The training data of these weights were not recorded: ask whoever published them before any use."
    rows = []
    for source in sources:
        cells = [_plain(source.name), _plain(source.licence), str(source.terms)]
        if source.terms is Terms.NON_COMMERCIAL:
            cells = [f"**{cell}**" for cell in cells]
        shapes = "-" if source.shapes is None else f"{source.shapes:,}"
        rows.append((cells[0], shapes, *cells[1:]))
    columns = ("source", "shapes", "licence", "allows")
    table = Table("", columns, tuple(rows)).markdown().strip().partition("\n\n")[2]
    terms = {source.terms for source in sources}
    last = "Weights derive from their training data: read these licences before you use or pass them on."
    if Terms.NON_COMMERCIAL in terms:
        last += " **Not for commercial use.**"
    if all(source.commercial_only for source in sources):
        last += (
            " The corpus was restricted to sources whose licences allow commercial use; their other conditions, "
            "such as naming the authors, remain."
        )
    if Terms.UNKNOWN in terms:
        last += " Where it says not known, ask the owner of the source."
    return f"{table}\n\n{last}"


def _plain(value: object) -> str:
    """Text from a file as one line, without characters that have a meaning in Markdown or HTML."""
    return re.sub(r"[\s<>\[\]`*_#|\\]+", " ", str(value)).strip()[:400] or "-"

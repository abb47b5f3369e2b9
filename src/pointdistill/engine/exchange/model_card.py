"""The README of shared weights: what they are, how they came about, what they reach, what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointdistill.data.files import read_json
from pointdistill.engine.exchange.licences import SourceTerms, Terms, card_licence, read_ledger
from pointdistill.engine.reporting.tables import Table
from pointdistill.errors import DataError

LIBRARY = "pointdistill"
TAGS = ("point-cloud", "3d", "self-supervised-learning", "asymdsd")
PAPER = "https://arxiv.org/abs/2506.21724"

_TRAINING = (
    ("recipe", ("name",), ("recipe", "name")),
    ("mode", ("mode",)),
    ("steps", ("step",), ("steps",)),
    ("epochs", ("epochs",)),
    ("batch size", ("batch_size",)),
    ("seed", ("seed",)),
    ("data", ("data_name",)),
    ("imported from", ("imported", "file")),
    ("its SHA-256", ("imported", "sha256")),
    ("branch", ("imported", "branch")),
)
"""Lines of the training table: what they are called, and where in ``config.json`` they may stand."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What is in the folder."""

    noun: str
    load: str
    """Python that makes ``model`` from ``repository``."""

    use: str
    """Python that asks it about ``points``."""

    purpose: str


ENCODER = Kind(
    noun="encoder",
    load="model = pointdistill.load_encoder({repository!r})",
    use="features = model(torch.from_numpy(points)[None])\n"
    "features.cls, features.patches, features.centers  # (1, D), (1, P, D), (1, P, 3)",
    purpose="Features of single 3-D objects for search, clustering, classification and segmentation, frozen or "
    "fine-tuned. It was trained on single objects with z up: not on whole scenes, and not on colour.",
)
CLASSIFIER = Kind(
    noun="classifier",
    load="model = pointdistill.load_classifier(huggingface_hub.snapshot_download({repository!r}))",
    use="prediction = model(torch.from_numpy(points)[None])\n"
    "prediction.classes, prediction.probabilities  # names, (1, C)",
    purpose="Telling the classes that it was trained on apart, in objects like those of its training data. It has "
    "an answer for every object, also for one of no class that it knows.",
)
SEGMENTER = Kind(
    noun="segmenter",
    load="model = pointdistill.load_segmenter(huggingface_hub.snapshot_download({repository!r}))",
    use="prediction = model(torch.from_numpy(points)[None], [0])  # the number of its category",
    purpose="Naming the parts of objects of the categories that it was trained on.",
)
KINDS = {
    "pointdistill-encoder": ENCODER,
    "pointdistill-classifier": CLASSIFIER,
    "pointdistill-segmenter": SEGMENTER,
}
"""By the format that a folder's ``config.json`` states."""


def model_card(
    repository: str,
    described: Mapping[str, Any],
    results: Iterable[Mapping[str, Any]] = (),
    *,
    run: Mapping[str, Any] | None = None,
) -> str:
    """The text of ``README.md``, its header in YAML.

    Args:
        repository: ``owner/name``.
        described: the folder's ``config.json``.
        results: rows of ``results.json`` files that belong to these weights.
        run: the ``config.json`` of the run they come from, if it is at hand.
    """
    kind = KINDS[described["format"]]
    sources = read_ledger(described.get("sources"))
    parts = [
        _header(sources),
        f"# {repository.partition('/')[2]}",
        _summary(kind, described),
        _section("Use", _code(kind, repository) + f"\n\n{kind.purpose}"),
        _section("Training", _training(described, run)),
        _section("Results", _results(results)),
        _section("Licences", _licences(sources)),
    ]
    return "\n\n".join(parts) + "\n"


def _header(sources: list[SourceTerms]) -> str:
    """The part that the Hub reads."""
    from huggingface_hub import ModelCardData

    licence = card_licence(sources)
    extra: dict[str, Any] = {}
    if licence.name is not None:
        extra = {"license_name": licence.name, "license_link": "README.md"}
    names = [re.sub(r"[^\w.-]+", "-", source.name).strip("-").lower() for source in sources]
    data = ModelCardData(
        license=licence.identifier,
        **extra,
        library_name=LIBRARY,
        tags=list(TAGS),
        datasets=sorted({name for name in names if name}),
    )
    return f"---\n{data.to_yaml()}\n---"


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _summary(kind: Kind, described: Mapping[str, Any]) -> str:
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


def _code(kind: Kind, repository: str) -> str:
    imports = "import huggingface_hub\n" if "huggingface_hub" in kind.load else ""
    return (
        f"```python\n{imports}import pointdistill\nimport torch\n\n"
        f"{kind.load.format(repository=repository)}\n"
        'points = pointdistill.sample_surface("chair.obj", 1024, seed=0)\n'
        f"{kind.use}\n```\n\n"
        "Any unit and place, z up. Weights are safetensors; nothing in this repository is run when it is loaded."
    )


def _training(described: Mapping[str, Any], run: Mapping[str, Any] | None) -> str:
    training = described.get("training")
    rows = []
    for label, *places in _TRAINING:
        value = next((v for v in (_at(training, place) for place in places) if v is not None), None)
        if value is not None:
            rows.append((label, _plain(value)))
    corpus = _at(run, ("corpus", "shapes"))
    if corpus is not None:
        rows.append(("shapes of the corpus", _plain(corpus)))
    content = _at(run, ("corpus", "fingerprint"))
    if content is not None:
        rows.append(("content of the corpus", _plain(content)))
    if not rows:
        return "Nothing was recorded of how these weights came about."
    table = Table("", ("setting", "value"), tuple(rows)).markdown().partition("\n\n")[2]
    return table.strip() + "\n\nThe whole configuration is in `config.json`."


def _at(value: Any, path: tuple[str, ...]) -> Any:
    """A plain value in nested tables, or None."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def read_results(files: Iterable[Path], *, fingerprint: str) -> list[Mapping[str, Any]]:
    """Rows of ``results.json`` files; damaged ones, and rows of other weights, are left out.

    Args:
        files: as ``pointdistill evaluate`` writes them.
        fingerprint: SHA-256 of the weights' file.
    """
    rows: list[Mapping[str, Any]] = []
    for file in files:
        try:
            stored = read_json(file)
        except DataError:
            continue
        found = stored.get("results") if isinstance(stored, dict) else None
        for row in found if isinstance(found, list) else []:
            if isinstance(row, dict) and row.get("fingerprint") in (None, "", fingerprint):
                rows.append(row)
    return rows


def _results(rows: Iterable[Mapping[str, Any]]) -> str:
    """A table of what was measured; a stand-in is named as such in every row."""
    cells = list(_result_cells(rows))
    if not cells:
        return "None were recorded with these weights. `pointdistill evaluate` measures them."
    columns = ("features", "data", "protocol", "points", "accuracy %", "repeated")
    notes = ["Figures of the last epoch, on the test split, in percent."]
    if any("stand-in" in row[1] for row in cells):
        notes.append(
            "A stand-in is data made by pointdistill in a benchmark's layout; its figures are not the benchmark's."
        )
    return Table("", columns, tuple(cells), tuple(notes)).markdown().strip().partition("\n\n")[2]


def _result_cells(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        mean, deviation = _at(row, ("accuracy", "mean")), _at(row, ("accuracy", "deviation"))
        data = row.get("data_name") or row.get("benchmark")
        if not isinstance(mean, int | float) or not isinstance(data, str):
            continue
        split = row.get("split")
        named = f"{_plain(data)}, {_plain(split)}" if isinstance(split, str) and split else data
        if row.get("stand_in") and "stand-in" not in named:
            named += " (stand-in)"
        seeds = row.get("seeds")
        repeated = "-"
        if isinstance(seeds, list):
            over = _plain(row.get("repeated_over") or "seeds")
            repeated = f"{len(seeds)} {over.removesuffix('s') if len(seeds) == 1 else over}"
        spread = f" ± {deviation:.2f}" if isinstance(deviation, int | float) else ""
        yield (
            _plain(row.get("features") or "-"),
            named,
            _protocol(row),
            _plain(row.get("points") or "-"),
            f"{mean:.2f}{spread}",
            repeated,
        )


def _protocol(row: Mapping[str, Any]) -> str:
    """The protocol, and in what the run departed from it."""
    parts = []
    epochs, whole = row.get("epochs"), row.get("protocol_epochs")
    if epochs is not None and epochs != whole:
        parts.append(f"{_plain(epochs)} of {_plain(whole)} epochs")
    votes = row.get("votes")
    if isinstance(votes, int) and votes > 1:
        parts.append(f"{votes} votes")
    name = _plain(row.get("protocol") or "-")
    return f"{name} ({', '.join(parts)})" if parts else name


def _licences(sources: list[SourceTerms]) -> str:
    """Every source with its licence, those without commercial use in bold; what follows for the weights."""
    if not sources:
        return "Which shapes these weights saw was not recorded: ask whoever published them before any use."
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
    last = "Weights are made of what they saw: read these licences before you use or pass them on."
    if Terms.NON_COMMERCIAL in terms:
        last += " **Not for commercial use.**"
    if Terms.UNKNOWN in terms:
        last += " Where it says not known, ask the owner of the source."
    return f"{table}\n\n{last}"


def _plain(value: object) -> str:
    """Text that a file chose, on one line, without what Markdown or HTML would act on."""
    return re.sub(r"[\s<>\[\]`*_#|\\]+", " ", str(value)).strip()[:200] or "-"

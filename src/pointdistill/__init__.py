"""Self-supervised representations of 3-D shapes, from meshes and point clouds, with no labels.

The stable interface is the names in ``__all__``; docs/python.md shows each. They are looked up when first used, so
that importing the package costs nothing: torch is loaded by those alone that compute features or predictions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pointdistill.version import __version__

__all__ = [
    "Embedding",
    "Encoder",
    "PointDistillError",
    "__version__",
    "embed",
    "load_classifier",
    "load_encoder",
    "load_segmenter",
    "open_corpus",
    "sample_surface",
    "search",
]

if TYPE_CHECKING:
    from pointdistill.api import Encoder, embed, load_encoder, search
    from pointdistill.data.corpus import open_corpus
    from pointdistill.data.meshes import sample_surface
    from pointdistill.engine.embedding.memory import Embedding
    from pointdistill.engine.finetuning.models import load_classifier, load_segmenter
    from pointdistill.errors import PointDistillError

_HOMES = {
    "Embedding": "pointdistill.engine.embedding.memory",
    "Encoder": "pointdistill.api",
    "PointDistillError": "pointdistill.errors",
    "embed": "pointdistill.api",
    "load_classifier": "pointdistill.engine.finetuning.models",
    "load_encoder": "pointdistill.api",
    "load_segmenter": "pointdistill.engine.finetuning.models",
    "open_corpus": "pointdistill.data.corpus",
    "sample_surface": "pointdistill.data.meshes",
    "search": "pointdistill.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

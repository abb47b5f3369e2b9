"""Self-supervised representations of 3-D shapes, from meshes and point clouds, with no labels.

Five calls are the stable interface: ``load_encoder``, ``load_classifier``, ``load_segmenter``, ``sample_surface``
and ``open_corpus``. They are looked up when first used, so that importing the package costs nothing (torch is
loaded by the first three alone).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pointdistill.version import __version__

__all__ = [
    "__version__",
    "load_classifier",
    "load_encoder",
    "load_segmenter",
    "open_corpus",
    "sample_surface",
]

if TYPE_CHECKING:
    from pointdistill.data.corpus import open_corpus
    from pointdistill.data.meshes import sample_surface
    from pointdistill.engine.finetuning.models import load_classifier, load_segmenter
    from pointdistill.engine.weights.encoders import load_encoder

_HOMES = {
    "load_classifier": "pointdistill.engine.finetuning.models",
    "load_encoder": "pointdistill.engine.weights.encoders",
    "load_segmenter": "pointdistill.engine.finetuning.models",
    "open_corpus": "pointdistill.data.corpus",
    "sample_surface": "pointdistill.data.meshes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)

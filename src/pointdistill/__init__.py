"""Self-supervised representations of 3-D shapes, from meshes and point clouds, with no labels.

Three calls are the stable interface: ``load_encoder``, ``sample_surface`` and ``open_corpus``. They are looked up
when first used, so that importing the package costs nothing (torch is loaded by ``load_encoder`` alone).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_encoder", "open_corpus", "sample_surface"]

if TYPE_CHECKING:
    from pointdistill.data.corpus import open_corpus
    from pointdistill.data.meshes import sample_surface
    from pointdistill.engine.weights import load_encoder

_HOMES = {
    "load_encoder": "pointdistill.engine.weights",
    "open_corpus": "pointdistill.data.corpus",
    "sample_surface": "pointdistill.data.meshes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)

"""Evaluation: the protocols of section 7 of docs/method.md, in memory and from archives on disk."""

from pointdistill.engine.evaluation.bench import evaluate, evaluate_geometry, measure
from pointdistill.engine.evaluation.plan import COPIES_ON_CPU, FROZEN, PROTOCOLS, Evaluation

__all__ = [
    "COPIES_ON_CPU",
    "FROZEN",
    "PROTOCOLS",
    "Evaluation",
    "evaluate",
    "evaluate_geometry",
    "measure",
]

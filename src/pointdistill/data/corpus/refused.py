"""The list of refused shapes, counted by cause."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pointdistill.data.corpus.columns import damaged

MOST_CAUSES = 500
"""Kinds of causes that are told apart; further ones are counted together."""

OTHERS = "other causes"

_ONE_SHAPES_OWN = re.compile(r"'[^']*'|\"[^\"]*\"|[-+]?\d[\d.,]*(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedCause:
    """Shapes of one source that were refused for the same reason."""

    source: str
    cause: str
    """What their causes have in common: …, where names and numbers of a single shape stood."""

    shapes: int
    example_id: str
    example: str
    """The cause of the shape ``example_id``, as it was recorded."""


def count_causes(path: Path) -> tuple[RefusedCause, ...]:
    """Read a ``refused.jsonl``, a line at a time, and count its shapes by source and cause.

    Returns:
        By source, the most frequent cause first.

    Raises:
        CorpusError: if the list is missing or a line is not what was written.
    """
    shapes: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], tuple[str, str]] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                source, name, cause = _parse(line, path, number)
                kind = (source, kind_of(cause, name))
                if kind not in shapes and len(shapes) >= MOST_CAUSES:
                    kind = (source, OTHERS)
                shapes[kind] += 1
                examples.setdefault(kind, (name, cause))
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, str(error)) from error
    causes = (
        RefusedCause(
            source=kind[0],
            cause=kind[1],
            shapes=count,
            example_id=examples[kind][0],
            example=examples[kind][1],
        )
        for kind, count in shapes.items()
    )
    return tuple(sorted(causes, key=lambda c: (c.source, -c.shapes, c.cause)))


def kind_of(cause: str, shape_id: str) -> str:
    """A cause without what belongs to one shape alone: its id, quoted names, and numbers."""
    return _ONE_SHAPES_OWN.sub("…", cause.replace(shape_id, "…") if shape_id else cause)


def _parse(line: str, path: Path, number: int) -> tuple[str, str, str]:
    try:
        stored = json.loads(line)
        return str(stored["source"]), str(stored["id"]), str(stored["cause"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"line {number:,} is no refused shape") from error

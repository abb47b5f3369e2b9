"""The list of refused shapes: written, read, and counted by cause.

A shape whose failure is retryable (a deadline, a memory limit, a crash, a file that the machine could not read)
may be usable and can be read again. All others are refused for what they are, on every machine.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointdistill.data.corpus.reader import damaged
from pointdistill.data.files.files import write_aside
from pointdistill.data.files.schema import (
    bounded_lines,
    from_plain,
    parse_json,
    refusing_damage,
    short_repr,
)
from pointdistill.errors import ConfigError, CorpusError

MOST_CAUSES = 500
"""Most causes that are counted apart; further ones are counted together."""

OTHERS = "other causes"

_SHAPE_SPECIFIC = re.compile(r"'[^']*'|\"[^\"]*\"|[-+]?\d[\d.,]*(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedShape:
    """One line of ``refused.jsonl``."""

    source: str
    id: str
    cause: str
    retryable_failure: str | None = None
    """``crash``, ``deadline``, ``memory`` or ``machine``; None for a shape that was refused for what it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedCause:
    """Shapes of one source that were refused for the same reason."""

    source: str
    cause: str
    """What their causes have in common, with … in place of names and numbers that belong to one shape."""

    shapes: int
    example_id: str
    example: str
    """The cause of the shape ``example_id``, as it was recorded."""

    retryable_failure: str | None
    """How they failed, where another attempt may succeed; None for shapes that were refused for what they are."""


def write_refused(path: Path, shapes: Iterable[RefusedShape]) -> None:
    """Write a list, whole or not at all."""
    with write_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        for shape in shapes:
            line = {"source": shape.source, "id": shape.id, "cause": shape.cause}
            if shape.retryable_failure is not None:
                line["backstop"] = shape.retryable_failure
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_refused(path: Path) -> Iterator[RefusedShape]:
    """The shapes of a ``refused.jsonl``, a line at a time.

    Raises:
        CorpusError: if the list is missing or a line is not what was written.
    """
    advice = "`pointdistill verify` names what is damaged"
    with refusing_damage(path, advice=advice, error=CorpusError), path.open("rb") as file:
        for number, line in enumerate(bounded_lines(file), start=1):
            yield parse_refused(line, path, number)


def count_causes(path: Path) -> tuple[RefusedCause, ...]:
    """Count the shapes of a ``refused.jsonl`` by source and cause.

    Returns:
        By source, the most frequent cause first.

    Raises:
        CorpusError: as `read_refused`.
    """
    shapes: Counter[tuple[str, str, str | None]] = Counter()
    examples: dict[tuple[str, str, str | None], RefusedShape] = {}
    for shape in read_refused(path):
        kind = (shape.source, general_cause(shape.cause, shape.id), shape.retryable_failure)
        if kind not in shapes and len(shapes) >= MOST_CAUSES:
            kind = (shape.source, OTHERS, shape.retryable_failure)
        shapes[kind] += 1
        examples.setdefault(kind, shape)
    causes = (
        RefusedCause(
            source=source,
            cause=cause,
            shapes=count,
            example_id=examples[source, cause, failure].id,
            example=examples[source, cause, failure].cause,
            retryable_failure=failure,
        )
        for (source, cause, failure), count in shapes.items()
    )
    return tuple(sorted(causes, key=lambda c: (c.source, -c.shapes, c.cause)))


def general_cause(cause: str, shape_id: str) -> str:
    """A cause without what belongs to one shape alone: its id, quoted names, and numbers."""
    return _SHAPE_SPECIFIC.sub("…", cause.replace(shape_id, "…") if shape_id else cause)


def parse_refused(line: bytes, path: Path, number: int) -> RefusedShape:
    """The shape on line ``number`` of a list.

    Raises:
        CorpusError: if the line is not what was written.
    """
    try:
        return from_plain(RefusedShape, with_field_names(parse_json(line)), partial=True)
    except (ValueError, ConfigError) as error:
        raise damaged(path, f"line {number:,} is no refused shape") from error


def with_field_names(stored: Any) -> dict[str, Any]:
    """A refusal as it is stored, with the names of the fields instead of those on disk.

    Raises:
        ValueError: if it is no table.
    """
    if not isinstance(stored, dict):
        msg = f"expected a refusal, got {short_repr(stored)}"
        raise ValueError(msg)  # noqa: TRY004
    renamed = {"backstop": "retryable_failure"}
    return {renamed.get(str(key), str(key)): value for key, value in stored.items()}

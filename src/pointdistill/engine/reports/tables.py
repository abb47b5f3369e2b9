"""Tables of plain text, which the command line prints and reports include; among them summaries of a corpus."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pointdistill.data.corpus.inspect import SAMPLED, CorpusSummary, SourceSummary
from pointdistill.data.corpus.refused import RefusedCause
from pointdistill.engine.weights.licences import Terms, terms_of
from pointdistill.errors import ConfigError, one_line
from pointdistill.reporter import format_bytes, plural

_LEAST_PROSE = 24
"""Fewest columns for a cell of several words that is wrapped in a narrow terminal."""

_LEAST_WORDS = 12
"""The same where the headings are broken at their spaces too, so that the columns fit beside each other at all."""

_COMMAND = re.compile("`[^`]*`")
_BETWEEN = 2
"""Columns of a terminal between two columns of a table."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under named columns.

    Raises:
        ConfigError: if a row has more or fewer cells than there are columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences to print below the table."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                msg = f"table {self.title!r}: {len(self.columns)} columns, but a row of {len(row)}"
                raise ConfigError(msg)

    def markdown(self) -> str:
        """The table in GitHub's Markdown, with its title in bold above it and its notes as a list below."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        grid = "\n".join("| " + " | ".join(map(_escape, line)) + " |" for line in lines)
        notes = "\n".join(f"- {one_line(note)}" for note in self.notes)
        return "\n\n".join(filter(None, [f"**{one_line(self.title)}**", grid, notes])) + "\n"

    def column_widths(self, room: int, *, wrapped: bool) -> list[int] | None:
        """How wide each column is on a terminal; None if they do not fit beside each other.

        Args:
            room: columns of the terminal.
            wrapped: whether cells of several words, and if need be headings, may be wrapped.
        """
        if not wrapped:
            return self._fit(room, self.columns, set(), 0)
        broken = [max(heading.split() or [""], key=len) for heading in self.columns]
        return self._fit(room, self.columns, self._prose(), _LEAST_PROSE) or self._fit(
            room, broken, self._prose(), _LEAST_WORDS
        )

    def note_lines(self, width: int) -> list[str]:
        """The notes in lines, broken between words, but not within `a command`, which may be copied."""
        lines: list[str] = []
        for note in self.notes:
            kept = _COMMAND.sub(lambda found: found[0].replace(" ", "\0"), one_line(note))
            lines += textwrap.wrap(kept, width, break_long_words=False, break_on_hyphens=False)
        return [line.replace("\0", " ") for line in lines]

    def _fit(
        self, room: int, headings: Sequence[str], prose: set[int], least: int
    ) -> list[int] | None:
        """The widths with these headings, where the columns ``prose`` may have only ``least``."""
        from rich.cells import cell_len

        cells = zip(headings, *self.rows, strict=True)
        widths = [max(cell_len(one_line(cell)) for cell in column) for column in cells]
        left = room - _BETWEEN * (len(widths) - 1)
        left -= sum(width for number, width in enumerate(widths) if number not in prose)
        # The narrow ones get what they need, and the others share what is left.
        for rank, number in enumerate(sorted(prose, key=lambda number: widths[number])):
            share = left // (len(prose) - rank)
            if share < min(least, widths[number]):
                return None
            widths[number] = min(widths[number], share)
            left -= widths[number]
        return widths if left >= 0 else None

    def _prose(self) -> set[int]:
        """Numbers of the columns with long cells of several words; never the first, which names the row."""
        return {
            number
            for number in range(1, len(self.columns))
            if any(" " in row[number] and len(row[number]) > _LEAST_PROSE for row in self.rows)
        }


def _escape(cell: str) -> str:
    return one_line(cell.replace("|", "\\|").replace("\n", " "))


MOST_LABELS = 25
"""Largest number of labels in a source's table; the JSON has all."""

MOST_CAUSES = 15
"""Largest number of causes in the table of refused shapes; the JSON has all."""

_SETTING_LETTERS = 60


def corpus_tables(summary: CorpusSummary) -> tuple[Table, ...]:
    """Tables of a corpus as a whole, its sources, licences, labels and refused shapes; empty ones are left out."""
    tables = [_whole(summary), _sources(summary), _licences(summary), _archives(summary)]
    tables += [_labels(source) for source in summary.sources if source.record.labels]
    tables += [_refused(summary)] if summary.causes else []
    return tuple(tables)


def corpus_json(summary: CorpusSummary) -> dict[str, Any]:
    """Everything known about a corpus, as plain values for JSON."""
    manifest = summary.manifest
    return {
        "path": str(summary.path),
        "shapes": manifest.shapes,
        "points": sum(shard.points for shard in manifest.shards),
        "points_asked": manifest.points,
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "shards": len(manifest.shards),
        "seed": manifest.seed,
        "content": manifest.content,
        "refused": sum(source.refused for source in manifest.sources),
        "refused_sha256": manifest.refused_sha256,
        "non_commercial": _non_commercial(summary),
        "sources": [_source_json(source) for source in summary.sources],
        "refused_causes": [_cause_json(cause) for cause in summary.causes],
    }


def _source_json(source: SourceSummary) -> dict[str, Any]:
    known = asdict(source.record)
    shapes = {"shapes": known.pop("kept"), "refused": known.pop("refused")}
    return (
        shapes
        | known
        | {
            "terms": str(terms_of(source.record.licence)[0]),
            "labels": dict(source.labels),
            "unlabelled": source.unlabelled,
            "points": asdict(source.points) if source.points else None,
            "extents": asdict(source.extents) if source.extents else None,
        }
    )


def _cause_json(cause: RefusedCause) -> dict[str, Any]:
    stored = asdict(cause)
    return stored | {"backstop": stored.pop("retryable_failure")}


def _whole(summary: CorpusSummary) -> Table:
    manifest = summary.manifest
    retryable = sum(cause.shapes for cause in summary.causes if cause.retryable_failure is not None)
    again = f", of which prepare-data can try {retryable:,} again" if retryable else ""
    rows = {
        "shapes": f"{manifest.shapes:,}, of {manifest.points:,} points where the source has them",
        "refused": f"{sum(source.refused for source in manifest.sources):,}{again}",
        "on disk": f"{format_bytes(sum(s.bytes for s in manifest.shards))} in "
        + plural(len(manifest.shards), "shard"),
        "seed": str(manifest.seed),
    }
    # Checksums are notes below the table, because a narrow terminal would cut them off in a cell.
    notes = [f"content: {manifest.content}"]
    if manifest.refused_sha256 is not None:
        notes.append(f"refused.jsonl: {manifest.refused_sha256}")
    title = f"Corpus {summary.path}"
    return Table(title, ("what", "value"), tuple(rows.items()), tuple(notes))


def _sources(summary: CorpusSummary) -> Table:
    columns = (
        "source",
        "shapes",
        "refused",
        "labels",
        "points per shape",
        "longest side",
        "median x, y, z",
    )
    return Table(
        "Sources",
        columns,
        tuple(_source_row(source) for source in summary.sources),
        (
            "points per shape: least, median, most; longest side: of the smallest and the largest shape, in "
            f"the source's own unit; median x, y, z: of at most {SAMPLED:,} shapes of a source.",
        ),
    )


def _source_row(source: SourceSummary) -> tuple[str, ...]:
    record, points, extents = source.record, source.points, source.extents
    counted = (record.name, f"{record.kept:,}", f"{record.refused:,}", f"{len(record.labels):,}")
    if points is None or extents is None:
        return (*counted, "-", "-", "-")
    same = points.least == points.most
    return (
        *counted,
        f"{points.most:,}" if same else f"{points.least:,}, {points.median:,}, {points.most:,}",
        f"{extents.least:.4g} to {extents.most:.4g}",
        " x ".join(f"{side:.3g}" for side in extents.median),
    )


def _licences(summary: CorpusSummary) -> Table:
    restricted = _non_commercial(summary)
    notes = [f"NOT FOR COMMERCIAL USE: {', '.join(restricted)}"] if restricted else []
    return Table(
        "Licences",
        ("source", "licence", "terms", "origin"),
        tuple(
            (
                source.record.name,
                source.record.licence,
                _terms(source.record.licence),
                source.record.origin,
            )
            for source in summary.sources
        ),
        tuple(notes),
    )


def _archives(summary: CorpusSummary) -> Table:
    rows, notes = [], []
    for source in summary.sources:
        record = source.record
        settings = "; ".join(
            f"{name.replace('_', ' ')}: {_brief(value)}" for name, value in record.settings.items()
        )
        rows.append((record.name, record.archive or "-", record.turned, settings or "-"))
        if record.archive_sha256 is not None:
            notes.append(f"{record.archive}: {record.archive_sha256}")
    columns = ("source", "archive", "turned", "settings")
    return Table("Archives", columns, tuple(rows), tuple(notes))


def _brief(value: object) -> str:
    """A setting for a table cell, shortened, since a list of names can be of any length."""
    text = _in_words(value)
    return text if len(text) <= _SETTING_LETTERS else f"{text[: _SETTING_LETTERS - 1]}…"


def _in_words(value: object) -> str:
    """A plain value without the marks of a programming language."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, Mapping):
        pairs = (f"{str(k).replace('_', ' ')} {_in_words(v)}" for k, v in value.items())
        return ", ".join(pairs) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_words, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _terms(licence: str) -> str:
    terms, _ = terms_of(licence)
    return terms.upper() if terms is Terms.NON_COMMERCIAL else str(terms)


def _non_commercial(summary: CorpusSummary) -> list[str]:
    """Names of the sources that do not allow commercial use."""
    return [
        source.record.name
        for source in summary.sources
        if terms_of(source.record.licence)[0] is Terms.NON_COMMERCIAL
    ]


def _labels(source: SourceSummary) -> Table:
    """The most frequent labels of a source; equally frequent ones in the source's order."""
    ordered = sorted(source.labels.items(), key=lambda label: -label[1])
    rest = ordered[MOST_LABELS:]
    notes = []
    if rest:
        shapes = sum(count for _, count in rest)
        notes.append(
            f"and {len(rest):,} more labels of {plural(shapes, 'shape')}; the JSON has them."
        )
    if source.unlabelled:
        notes.append(f"{plural(source.unlabelled, 'shape has', 'shapes have')} no label.")
    rows = tuple((name, f"{count:,}") for name, count in ordered[:MOST_LABELS])
    return Table(f"Labels of {source.record.name}", ("label", "shapes"), rows, tuple(notes))


def _refused(summary: CorpusSummary) -> Table:
    ordered = sorted(summary.causes, key=lambda cause: -cause.shapes)
    rest = ordered[MOST_CAUSES:]
    notes = ["refused.jsonl in the corpus's folder names every shape."]
    if rest:
        shapes = sum(cause.shapes for cause in rest)
        notes.insert(
            0, f"and {len(rest):,} more causes of {plural(shapes, 'shape')}; the JSON has them."
        )
    return Table(
        "Refused",
        ("source", "shapes", "retryable", "cause", "for example"),
        tuple(
            (
                cause.source,
                f"{cause.shapes:,}",
                cause.retryable_failure or "-",
                cause.cause,
                _example(cause),
            )
            for cause in ordered[:MOST_CAUSES]
        ),
        tuple(notes),
    )


def _example(cause: RefusedCause) -> str:
    """An example of the cause, with its own message if that differs from the cause."""
    own = "" if cause.example == cause.cause else f": {cause.example}"
    return f"{cause.example_id}{own}"

"""An output folder: every unit in a file of its own, whole or absent, and the results made from all of them.

Later and narrower evaluations into the same folder add to it. What is equal in encoder, data, protocol and
settings is one row, over all the seeds there are; what differs in any of them is another row; nothing is
overwritten.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pointdistill.data.files import read_json, write_aside, write_json
from pointdistill.engine.config import from_plain, to_plain
from pointdistill.engine.evaluation.charts import confusion_chart
from pointdistill.engine.evaluation.plan import PROTOCOLS
from pointdistill.engine.evaluation.results import (
    FOLDS,
    RESULTS_FORMAT,
    Result,
    combine,
    setting_of,
    write_results,
)
from pointdistill.engine.evaluation.results_tables import results_tables
from pointdistill.engine.evaluation.units import Unit, unit_key
from pointdistill.errors import ConfigError, DataError

RESULTS, TABLE, SCORES, PICTURES = "results.json", "results.md", "scores", "pictures"


class KeptUnits:
    """The units in an output folder; a ``Keeper``."""

    def __init__(self, output: Path) -> None:
        """Open a folder, which need not exist.

        Raises:
            DataError: if a score in it is damaged.
            ConfigError: if its ``results.json`` is another version's, and would be overwritten.
        """
        self.output = output
        _check_version(output / RESULTS)
        self._units: dict[str, Unit] = {}
        self._to_draw: set[object] = set()
        self._read_new()

    def find(self, asked: Result) -> Unit | None:
        """The unit that was asked for, if it is done."""
        return self._units.get(unit_key(asked))

    def keep(self, asked: Result, unit: Unit) -> None:
        """Write a unit, and the results with it."""
        path = self._score(asked)
        write_json(path, _plain(unit))
        _training_beside(path).unlink(missing_ok=True)
        self._units[unit_key(asked)] = unit
        self._to_draw.add(setting_of(unit.result))
        self.publish()

    def training_of(self, asked: Result) -> Path:
        """Beside the score that comes of it."""
        return _training_beside(self._score(asked))

    def results(self, of: Iterable[Result] | None = None) -> list[Result]:
        """All rows of the folder, or those that the results ``of`` a measurement belong to."""
        wanted = None if of is None else {setting_of(result) for result in of}
        rows = combine([unit.result for unit in self._units.values()])
        rows.sort(key=_place)
        return [row for row in rows if wanted is None or setting_of(row) in wanted]

    def publish(self) -> None:
        """Write ``results.json`` and ``results.md`` from all units, with the pictures there are."""
        self._read_new()
        rows = self.results()
        write_results(self.output / RESULTS, rows)
        parts = [table.markdown() for table in results_tables(rows)]
        pictures = [(row, self._picture(row)) for row in rows]
        shown = [
            f"![{_title(row)}]({path.relative_to(self.output).as_posix()})"
            for row, path in pictures
            if path.exists()
        ]
        with write_aside(self.output / TABLE) as aside:
            aside.write_text("\n".join([*parts, *(f"{line}\n" for line in shown)]), "utf-8")

    def draw(self, results: Sequence[Result]) -> list[Path]:
        """Confusion matrix and class accuracies of each result, over its seeds; those drawn now."""
        drawn = []
        for row in self.results(results):
            path, setting = self._picture(row), setting_of(row)
            units = [u for u in self._units.values() if setting_of(u.result) == setting]
            tables = [unit.confusion for unit in units if unit.confusion is not None]
            # The classes of one fold are not those of another.
            if not tables or row.repeated_over == FOLDS:
                continue
            if setting in self._to_draw or not path.exists():
                counts = [np.array(table) for table in tables]
                with write_aside(path) as aside:
                    aside.write_bytes(confusion_chart(counts, units[0].classes, title=_title(row)))
                self._to_draw.discard(setting)
                drawn.append(path)
        if drawn:
            self.publish()
        return drawn

    def _read_new(self) -> None:
        """Take in what was measured before, or by another process meanwhile."""
        for path in sorted((self.output / SCORES).glob("*.json")):
            key = path.stem.rsplit("-", 1)[-1]
            # A name with a dot in front is another process's file, not yet whole.
            if key not in self._units and not path.name.startswith("."):
                self._units[key] = _read_unit(path)
                # Left by a kill between the score and the end of its training.
                _training_beside(path).unlink(missing_ok=True)

    def _score(self, asked: Result) -> Path:
        return self.output / SCORES / f"{_stem(asked)}-{asked.seeds[0]}-{unit_key(asked)}.json"

    def _picture(self, row: Result) -> Path:
        key = hashlib.sha256(repr(setting_of(row)).encode()).hexdigest()[:8]
        return self.output / PICTURES / f"{_stem(row)}-{key}.png"


def _training_beside(score: Path) -> Path:
    """The training that a score is to come of; its name ends in the same key."""
    return score.with_suffix(".safetensors")


def _stem(result: Result) -> str:
    """Benchmark, split and protocol as a file name."""
    parts = [result.benchmark, result.split, "stand-in" * result.stand_in, result.label]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(filter(None, parts)).lower()).strip("-")


def _place(row: Result) -> tuple[object, ...]:
    """Where a row belongs: 5w10s before 10w10s, protocols in the order in which they are run."""
    pieces = re.split(r"(\d+)", row.split or "")
    split = [int(piece) if piece.isdigit() else piece for piece in pieces]
    known = row.protocol in PROTOCOLS
    protocol = PROTOCOLS.index(row.protocol) if known else len(PROTOCOLS)
    return row.benchmark, split, row.features, protocol, row.label


def _title(row: Result) -> str:
    data = f"{row.data_name}, {row.split}" if row.split else row.data_name
    return f"{data}: {row.label}, {row.metrics[0]} {row.accuracy} %"


def _read_unit(path: Path) -> Unit:
    found = read_json(path)
    try:
        return _unit(found)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        msg = f"{path}: not a score of this program's version ({error}); remove it, and it is measured again"
        raise DataError(msg) from error


def _plain(unit: Unit) -> dict[str, Any]:
    """Ready for JSON; a row of confusions is one line to read."""
    rows = None if unit.confusion is None else [" ".join(map(str, r)) for r in unit.confusion]
    return {"result": to_plain(unit.result), "classes": list(unit.classes), "confusion": rows}


def _unit(found: dict[str, Any]) -> Unit:
    """Of what ``_plain`` made."""
    rows = found["confusion"]
    return Unit(
        result=from_plain(Result, found["result"], where="result"),
        classes=tuple(found["classes"]),
        confusion=None if rows is None else tuple(tuple(map(int, row.split())) for row in rows),
    )


def _check_version(path: Path) -> None:
    if not path.exists():
        return
    found = read_json(path)
    version = found.get("format") if isinstance(found, dict) else None
    if version != RESULTS_FORMAT:
        msg = (
            f"{path} has format {version!r}, and this program writes {RESULTS_FORMAT}; "
            "move it away, or choose another --output"
        )
        raise ConfigError(msg)

"""An output folder: one file per score, written whole or not at all, and the results made from all of them.

A score is the result of one protocol for one seed on one split. Later evaluations into the same folder add to it:
scores with the same encoder, data, protocol and settings become one row, over all their seeds; any difference
makes another row, and nothing is overwritten.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.benchmarks.registry import CLASSIFICATION, PARTIAL
from pointdistill.data.files.files import read_json, write_aside, write_json
from pointdistill.data.files.schema import from_plain, refusing_damage, short_repr, to_plain
from pointdistill.data.files.workspace import last_run
from pointdistill.engine.evaluation.results import (
    FOLDS,
    RESULTS_FORMAT,
    Result,
    combine,
    setting_of,
    write_results,
)
from pointdistill.engine.evaluation.tables import confusion_chart, partial_chart, results_tables
from pointdistill.engine.features import Confusion
from pointdistill.engine.pretraining.run_folder import run_folder_of
from pointdistill.engine.weights.encoders import fingerprint
from pointdistill.errors import ConfigError, DataError
from pointdistill.model.encoder import Encoder

RESULTS, TABLE, SCORES, PICTURES = "results.json", "results.md", "scores", "pictures"


class ScoreStore:
    """The scores in an output folder."""

    def __init__(self, output: Path) -> None:
        """Open a folder, which need not exist.

        Raises:
            DataError: if a score in it is damaged.
            ConfigError: if its ``results.json`` was written by another version and would be overwritten.
        """
        self.output = output
        _check_version(output / RESULTS)
        self._results: dict[str, Result] = {}
        self._to_draw: set[object] = set()
        self._read_new()

    def find(self, template: Result) -> Result | None:
        """The stored result for a template's settings and seed; None if it was not measured yet."""
        return self._results.get(score_key(template))

    def add(
        self,
        template: Result,
        result: Result,
        confusion: Confusion | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        """Write the score of one seed, update the results, and remove the file of its training."""
        path = self._path(template)
        write_json(path, _plain(result, confusion, classes))
        _training_beside(path).unlink(missing_ok=True)
        self._results[score_key(template)] = result
        self._to_draw.add(setting_of(result))
        self.publish()

    def training_of(self, template: Result) -> Path:
        """Where the training for a score is saved while it runs: beside the score."""
        return _training_beside(self._path(template))

    def results(self, of: Iterable[Result] | None = None) -> list[Result]:
        """All rows of the folder, or those with the settings of one of the results ``of``."""
        wanted = None if of is None else {setting_of(result) for result in of}
        rows = combine(list(self._results.values()))
        rows.sort(key=_sort_key)
        return [row for row in rows if wanted is None or setting_of(row) in wanted]

    def publish(self) -> None:
        """Write ``results.json`` and ``results.md`` from all scores; the latter shows the pictures that exist."""
        self._read_new()
        rows = self.results()
        write_results(self.output / RESULTS, rows)
        parts = [table.markdown() for table in results_tables(rows)]
        pictures = {self._picture(row): row for row in rows}
        shown = [
            f"![{_title(row)}]({path.relative_to(self.output).as_posix()})"
            for path, row in pictures.items()
            if path.exists()
        ]
        with write_aside(self.output / TABLE) as aside:
            aside.write_text("\n".join([*parts, *(f"{line}\n" for line in shown)]), "utf-8")

    def draw(self, results: Sequence[Result]) -> list[Path]:
        """Draw the confusion matrix and class accuracies of each result, over its seeds; returns the new files."""
        drawn = self._draw_curves(results)
        for row in self.results(results):
            path, setting = self._picture(row), setting_of(row)
            # The classes of one fold are not those of another.
            if row.repeated_over == FOLDS or (setting not in self._to_draw and path.exists()):
                continue
            scores = [
                _read_score(self.output / SCORES / name)
                for name in self._names()
                if setting_of(self._results[_key_of(name)]) == setting
            ]
            counts = [score.counts for score in scores if score.confusion]
            if not counts:
                continue
            with write_aside(path) as aside:
                chart = confusion_chart(counts, scores[0].classes, title=_title(row))
                aside.write_bytes(chart)
            self._to_draw.discard(setting)
            drawn.append(path)
        if drawn:
            self.publish()
        return drawn

    def _draw_curves(self, results: Sequence[Result]) -> list[Path]:
        """Draw the curves on partial shapes, each with all sets of features that the folder has of it."""
        drawn = []
        for row in self.results(results):
            path = self._picture(row)
            if row.protocol not in PARTIAL or path in drawn:
                continue
            rows = [one for one in self.results() if self._picture(one) == path]
            chart = partial_chart(rows, title=_title(row))
            with write_aside(path) as aside:
                aside.write_bytes(chart)
            drawn.append(path)
        return drawn

    def _names(self) -> list[str]:
        """File names of all scores that were read."""
        names = sorted(path.name for path in (self.output / SCORES).glob("*.json"))
        # A name that starts with a dot belongs to a file that another process is still writing.
        return [name for name in names if name[0] != "." and _key_of(name) in self._results]

    def _read_new(self) -> None:
        """Read the scores of earlier evaluations, and those that another process has added since."""
        for path in sorted((self.output / SCORES).glob("*.json")):
            key = _key_of(path.name)
            if key not in self._results and not path.name.startswith("."):
                self._results[key] = _read_score(path).result
                # Left over if a process was killed after writing the score.
                _training_beside(path).unlink(missing_ok=True)

    def _path(self, template: Result) -> Path:
        name = f"{_stem(template)}-{template.seeds[0]}-{score_key(template)}.json"
        return self.output / SCORES / name

    def _picture(self, row: Result) -> Path:
        # On partial shapes one picture compares all sets of features.
        shared = (row.benchmark, row.split, row.checksum, row.protocol)
        setting = shared if row.protocol in PARTIAL else setting_of(row)
        key = hashlib.sha256(repr(setting).encode()).hexdigest()[:8]
        return self.output / PICTURES / f"{_stem(row)}-{key}.png"


def score_key(template: Result) -> str:
    """Twelve hexadecimal digits for one seed of one setting."""
    text = repr((setting_of(template), template.seeds))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _key_of(name: str) -> str:
    """The key in a score's file name."""
    return Path(name).stem.rsplit("-", 1)[-1]


def _training_beside(score: Path) -> Path:
    """The file of the training that gives a score; its name ends in the same key."""
    return score.with_suffix(".safetensors")


def _stem(result: Result) -> str:
    """Benchmark, split and protocol as a file name."""
    parts = [result.benchmark, result.split, "stand-in" * result.stand_in, result.label]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(filter(None, parts)).lower()).strip("-")


def _sort_key(row: Result) -> tuple[object, ...]:
    """Sorts 5w10s before 10w10s, and protocols in the order in which they are run."""
    pieces = re.split(r"(\d+)", row.split or "")
    split = [int(piece) if piece.isdigit() else piece for piece in pieces]
    known = row.protocol in CLASSIFICATION
    protocol = CLASSIFICATION.index(row.protocol) if known else len(CLASSIFICATION)
    return row.benchmark, split, row.features, protocol, row.label


def _title(row: Result) -> str:
    data = f"{row.data_name}, {row.split}" if row.split else row.data_name
    if row.protocol in PARTIAL:
        return f"{data}: {row.label}"
    return f"{data}: {row.label}, {row.metrics[0]} {row.accuracy} %"


@dataclass(frozen=True, kw_only=True, slots=True)
class _StoredScore:
    """A file of one score, as `_plain` writes it."""

    result: Result
    classes: tuple[str, ...]
    confusion: tuple[str, ...] | None
    """A row of counts for each class, as text."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """(C, C) the confusion matrix."""
        rows = [[int(count) for count in row.split()] for row in self.confusion or ()]
        return np.array(rows, np.int64).reshape(len(self.classes), len(self.classes))


def _read_score(path: Path) -> _StoredScore:
    advice = "not a score of this program's version; remove it, and it is measured again"
    with refusing_damage(path, advice=advice):
        score = from_plain(_StoredScore, read_json(path))
        if len(score.result.seeds) != 1 or len(score.result.each) != 1:
            msg = f"{path}: holds {len(score.result.seeds)} seeds, expected 1; {advice}"
            raise DataError(msg)
        if score.confusion and score.counts.min(initial=0) < 0:
            msg = f"{path}: a count is negative; {advice}"
            raise DataError(msg)
        return score


def _plain(result: Result, confusion: Confusion | None, classes: tuple[str, ...]) -> dict[str, Any]:
    """A score ready for JSON. Each row of the confusion matrix is a string, so that it fills one line."""
    rows = None
    if confusion is not None:
        # The matrix ends with the last class that occurs; rows and columns of zeros stand for the others.
        more = len(classes) - len(confusion)
        padded = [*[(*row, *[0] * more) for row in confusion], *[(0,) * len(classes)] * more]
        rows = [" ".join(map(str, row)) for row in padded]
    return {"result": to_plain(result), "classes": list(classes), "confusion": rows}


def _check_version(path: Path) -> None:
    if not path.exists():
        return
    found = read_json(path)
    version = found.get("format") if isinstance(found, dict) else None
    if version != RESULTS_FORMAT:
        msg = (
            f"{path} has format {short_repr(version)}, and this program writes {RESULTS_FORMAT}; "
            "move it away, or choose another output folder"
        )
        raise ConfigError(msg, settings=("output",))


EXPORTED_RESULTS = "results"
"""Key in an exported encoder's ``config.json`` for the scores that existed when it was exported."""


def find_results(
    encoder: Encoder, stored: Path, facts: Mapping[str, Any], *, working: Path
) -> list[Result]:
    """The scores measured with exactly these weights, one per setting, without any paths of this machine.

    They are looked for in the encoder's ``config.json``, beside the encoder, in its run, and where ``evaluate``
    writes: under ``evaluation/`` in the working folder and in the last run made there. Of several scores for one
    setting, the one over the most seeds is taken. Files that cannot be read are ignored.

    Args:
        encoder: the one in ``stored``.
        stored: its folder, or its file.
        facts: what is recorded of it, from ``encoders.read_facts``.
        working: the folder that commands are run in.
    """
    own = fingerprint(encoder)
    tables = [facts.get(EXPORTED_RESULTS)]
    tables += [_read_rows(file) for file in _result_files(stored, working)]
    best: dict[object, Result] = {}
    for result in (result for rows in tables for result in _parse_rows(rows)):
        if result.fingerprint == own:
            earlier = best.get(setting_of(result))
            if earlier is None or len(result.seeds) > len(earlier.seeds):
                # The stored name is the encoder's path on this machine.
                best[setting_of(result)] = replace(result, features="encoder")
    return list(best.values())


def results_in(folder: Path) -> list[Result]:
    """The scores that ``evaluate`` left in a folder, one per setting; files that cannot be read are ignored."""
    found: dict[object, Result] = {}
    for file in _files_in(folder):
        for result in _parse_rows(_read_rows(file)):
            key = (result.features, result.fingerprint, setting_of(result))
            if key not in found or len(found[key].seeds) < len(result.seeds):
                found[key] = result
    return list(found.values())


def _files_in(folder: Path) -> list[Path]:
    return sorted([*folder.glob("results.json"), *folder.glob("evaluation/*/results.json")])


def _result_files(stored: Path, working: Path) -> Iterator[Path]:
    """Every ``results.json`` that may hold an encoder's scores."""
    run, last = run_folder_of(stored), last_run(folder=working)
    beside = stored if stored.is_dir() else stored.parent
    folders = [beside, *([] if run is None else [run]), working, *([] if last is None else [last])]
    for folder in dict.fromkeys(path.resolve() for path in folders):
        yield from _files_in(folder)


def _read_rows(file: Path) -> Any:
    with suppress(DataError):
        content = read_json(file)
        return content.get("results") if isinstance(content, Mapping) else None
    return None


def _parse_rows(rows: Any) -> Iterator[Result]:
    """The rows that this version of the program can read."""
    for row in rows if isinstance(rows, list) else []:
        with suppress(DataError), refusing_damage(RESULTS):
            yield from_plain(Result, row, where="result")

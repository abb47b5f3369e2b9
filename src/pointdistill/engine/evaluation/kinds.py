"""The benchmarks by the names that a user types: where each is looked for, what it has, how it is stood in for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pointdistill.data.benchmarks import lvis as lvis_data
from pointdistill.data.benchmarks import modelnet40, modelnet_fewshot, scanobjectnn, shapenetpart
from pointdistill.data.benchmarks.records import Benchmark
from pointdistill.data.corpus import open_corpus
from pointdistill.data.standins import (
    make_lvis_stand_in,
    make_modelnet40_stand_in,
    make_modelnet_fewshot_stand_in,
    make_scanobjectnn_stand_in,
    make_shapenetpart_stand_in,
)
from pointdistill.data.standins.lvis import CORPUS_FOLDER
from pointdistill.engine.evaluation import fewshot, lvis, parts
from pointdistill.engine.evaluation.clouds import evaluate_clouds
from pointdistill.engine.evaluation.forecast import Count
from pointdistill.engine.evaluation.job import Job
from pointdistill.engine.evaluation.plan import FROZEN, PROTOCOLS
from pointdistill.engine.evaluation.results import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkKind:
    """How one benchmark is found, measured, and stood in for."""

    archives: tuple[str, ...]
    """File names of the archive, looked for under ``data/``."""

    splits: tuple[str | None, ...] = (None,)
    """Its official variants, in the order of the results; None where there is one only."""

    protocols: tuple[str, ...]
    """All it has, in the order in which they are run."""

    usual: tuple[str, ...]
    """Those run where none is named."""

    seeds: int = 3
    """Runs where no number is asked for: seeds, folds or draws."""

    most_seeds: int | None = None
    """As many folds or draws as there are; None for any number."""

    votes: bool = True
    """Whether there are logits of clouds to average."""

    needs_corpus: bool = False
    """Whether the archive only names shapes, and a corpus has them."""

    measure: Callable[[Job], list[Result]]
    refuse_absent: Callable[[Path, Path | None], object]
    """The reader, called on an archive that is not there: it says where that comes from."""

    stand_in: str
    """File or folder name of the stand-in, under ``data/stand-in``."""

    stand_in_corpus: str = ""
    """The corpus in that folder."""

    make_stand_in: Callable[[Path, Count], None]
    """Write the stand-in's archive."""


def _read_scanobjectnn(path: Path, split: str | None, _count: Count) -> Benchmark:
    assert split is not None
    return scanobjectnn.read_scanobjectnn(path, split)


def _read_modelnet40(path: Path, _split: str | None, count: Count) -> Benchmark:
    return modelnet40.read_modelnet40(path, progress=count)


def _read_lvis(annotation: Path, corpus: Path | None) -> object:
    assert corpus is not None
    return lvis_data.read_lvis(annotation, open_corpus(corpus))


BENCHMARKS = {
    "scanobjectnn": BenchmarkKind(
        archives=(scanobjectnn.ARCHIVE_NAME,),
        stand_in=scanobjectnn.ARCHIVE_NAME,
        splits=tuple(scanobjectnn.SPLITS),
        protocols=PROTOCOLS,
        usual=FROZEN,
        measure=lambda job: evaluate_clouds(job, _read_scanobjectnn),
        refuse_absent=lambda path, _: scanobjectnn.read_scanobjectnn(path, "OBJ-BG"),
        make_stand_in=lambda path, count: make_scanobjectnn_stand_in(path, progress=count),
    ),
    "modelnet40": BenchmarkKind(
        archives=("ModelNet40.zip",),
        stand_in="ModelNet40.zip",
        protocols=PROTOCOLS,
        usual=FROZEN,
        measure=lambda job: evaluate_clouds(job, _read_modelnet40),
        refuse_absent=lambda path, _: modelnet40.read_modelnet40(path),
        make_stand_in=lambda path, count: make_modelnet40_stand_in(path, progress=count),
    ),
    "fewshot": BenchmarkKind(
        archives=(modelnet_fewshot.ARCHIVE_NAME,),
        stand_in=modelnet_fewshot.ARCHIVE_NAME,
        splits=tuple(fewshot.SPLITS),
        protocols=(*FROZEN, "finetune"),
        usual=("finetune",),
        seeds=modelnet_fewshot.FOLDS,
        most_seeds=modelnet_fewshot.FOLDS,
        measure=fewshot.evaluate_fewshot,
        refuse_absent=lambda path, _: modelnet_fewshot.read_modelnet_fewshot(
            path, way=5, shot=10, fold=0
        ),
        make_stand_in=lambda path, count: make_modelnet_fewshot_stand_in(path, progress=count),
    ),
    "shapenetpart": BenchmarkKind(
        archives=(f"{shapenetpart.ARCHIVE_STEM}.zip", f"{shapenetpart.ARCHIVE_STEM}.tar"),
        stand_in=f"{shapenetpart.ARCHIVE_STEM}.zip",
        votes=False,
        protocols=parts.PROTOCOLS,
        usual=parts.PROTOCOLS,
        measure=parts.evaluate_parts,
        refuse_absent=lambda path, _: shapenetpart.read_shapenetpart(path),
        make_stand_in=lambda path, count: make_shapenetpart_stand_in(path, progress=count),
    ),
    "lvis": BenchmarkKind(
        archives=(lvis_data.ANNOTATION_NAME,),
        stand_in="lvis",
        stand_in_corpus=CORPUS_FOLDER,
        votes=False,
        needs_corpus=True,
        protocols=lvis.PROTOCOLS,
        usual=lvis.PROTOCOLS,
        seeds=10,
        measure=lvis.evaluate_lvis,
        refuse_absent=_read_lvis,
        make_stand_in=lambda path, count: make_lvis_stand_in(path, progress=count),
    ),
}
"""By the name that a user types."""

ALL_PROTOCOLS = tuple(dict.fromkeys(p for kind in BENCHMARKS.values() for p in kind.protocols))
"""Of every benchmark, in the order in which they are run."""

"""ModelNet40 as a source: OFF meshes by class and split, read out of the zip one by one, z up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pointdistill.data.archive import open_archive
from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.sources.archived import ArchiveSource, archive_facts
from pointdistill.data.sources.base import Cloud, Entry, SourceInfo, SourceRequest, required_path
from pointdistill.data.sources.shapes import cloud_of, read_member
from pointdistill.errors import DataError

_SPLITS = ("train", "test")


class ModelNet40Source(ArchiveSource):
    """Meshes by class, split and name: ``chair/train/chair_0001``."""

    def __init__(self, path: Path, facts: SourceFacts, splits: tuple[str, ...]) -> None:
        """Use `open_source`."""
        super().__init__(path, facts)
        self._splits = splits

    def entries(self) -> Sequence[Entry]:
        """Every OFF member of the splits that were asked for."""
        number = {label: k for k, label in enumerate(self.facts.labels)}
        return [
            Entry(id=shape_id, label=number[shape_id.split("/")[0]], where=name)
            for name, shape_id in _meshes(self.archive.names, self._splits)
        ]

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> Cloud:
        """Points of one mesh's surface; see `pointdistill.data.sources.base.Source`."""
        return cloud_of(read_member(self.archive, entry.where), count, up="z", rng=rng)


def open_source(request: SourceRequest, info: SourceInfo) -> ModelNet40Source:
    """The source for a ``ModelNet40.zip``: its training split, and its test split if asked for.

    Raises:
        DataError: if the archive is absent, damaged, or in another of ModelNet40's forms.
    """
    path = required_path(request, info)
    splits = _SPLITS if request.include_test else _SPLITS[:1]
    with open_archive(path, absent=str(path)) as archive:
        found = list(_meshes(archive.names, _SPLITS))
        if not found:
            msg = (
                f"{path}: holds no <class>/train/<name>.off; other forms of ModelNet40 are not meshes, "
                f"get {info.archive} from {info.origin}"
            )
            raise DataError(msg)
        facts = archive_facts(
            archive,
            info,
            names=[name for name, _ in found],
            turned="none",
            labels=tuple(sorted({shape_id.split("/")[0] for _, shape_id in found})),
            settings={"splits": list(splits)},
        )
    return ModelNet40Source(path, facts, splits)


def _meshes(names: Iterable[str], splits: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Each OFF member of ``splits`` with its id: class, split and name, whatever folder they lie in."""
    for name in names:
        path = PurePosixPath(name)
        if path.suffix.lower() == ".off" and len(path.parts) >= 3 and path.parts[-2] in splits:
            yield name, f"{path.parts[-3]}/{path.parts[-2]}/{path.stem}"

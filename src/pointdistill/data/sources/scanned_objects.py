"""Google Scanned Objects (Downs et al., ICRA 2022): a folder of zips, one OBJ model each, z up.

Ids: the name of the zip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointdistill.data.corpus.manifest import SourceFacts
from pointdistill.data.files.archive import open_archive, still_there
from pointdistill.data.files.workspace import file_checksum
from pointdistill.data.meshes.records import LeftOut
from pointdistill.data.meshes.sample import draw_up_to, read_member
from pointdistill.data.sources.base import (
    Entry,
    SourceCloud,
    SourceInfo,
    SourceRequest,
    archive_paths,
    printable,
    source_facts,
)
from pointdistill.data.sources.members import joint_checksum
from pointdistill.errors import DataError

_MESH = "meshes/model.obj"


@dataclass(frozen=True, slots=True)
class ScannedObjectsSource:
    """One zip per shape, so that a damaged zip costs only its own shape."""

    facts: SourceFacts
    folder: Path

    def entries(self) -> Sequence[Entry]:
        """Every zip in the folder; none is opened."""
        return [Entry(id=printable(zip_.stem), where=zip_.name) for zip_ in _zips(self.folder)]

    def read(self, entry: Entry, count: int, *, rng: np.random.Generator) -> SourceCloud:
        """Points of one zip's mesh; see `pointdistill.data.sources.base.Source`."""
        path = self.folder / entry.where
        with still_there(path):
            try:
                with open_archive(path, absent=str(path), tolerate_unsafe=True) as archive:
                    member = archive.find(_MESH)
                    if member is None:
                        archive.refuse(_MESH, "it is not in the zip")
                    shape = read_member(archive, member)
            except DataError as error:
                raise DataError(str(error).replace(str(path), path.name)) from error
        points = draw_up_to(shape, count, up="z", rng=rng)
        return SourceCloud(points, left_out=LeftOut.of(shape, entry.id))


def open_source(request: SourceRequest, info: SourceInfo) -> ScannedObjectsSource:
    """The source for a folder of zips; reads each once for its checksum.

    Raises:
        DataError: if the folder is absent or holds no zip.
    """
    named = archive_paths(request, info)[0]
    # A file that was named instead of found in a folder is not a folder of zips.
    folder = named.parent if request.path != named and not named.is_dir() else named
    zips = _zips(folder) if folder.is_dir() else []
    if not zips:
        msg = f"{folder}: is no folder of <name>.zip; get {info.archive} from {info.origin}"
        raise DataError(msg)
    facts = source_facts(
        info,
        archive=printable(folder.resolve().name),
        checksum=joint_checksum(zips, [file_checksum(zip_) for zip_ in zips]),
        turned="none",
        labels=(),
        settings={},
    )
    return ScannedObjectsSource(facts, folder.resolve())


def _zips(folder: Path) -> list[Path]:
    return sorted(zip_ for zip_ in folder.glob("*.zip") if not zip_.name.startswith("."))

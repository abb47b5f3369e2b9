"""A corpus in other programs' formats: NPZ, PLY, tar files for WebDataset, and Parquet.

The export is written beside its final name and renamed at the end, so the folder is whole or absent; an
interrupted call continues. ``SHA256SUMS`` lists every file, ``export.json`` says what the export is of, and
``LICENCES.txt`` what may be done with it. Times, host names and paths are nowhere, so the same corpus gives the
same bytes.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointdistill.data.corpus.manifest import FRAME, ShardRecord, SourceRecord
from pointdistill.data.corpus.reader import Corpus, open_corpus
from pointdistill.data.corpus.rows import read_rows
from pointdistill.data.corpus.shard import RowBlock, restore
from pointdistill.data.corpus_building.build import room_needed
from pointdistill.data.files.archive import leads_outside, safe_name
from pointdistill.data.files.files import (
    LOCK_NAME,
    check_own_folder,
    check_replaceable,
    flush,
    hold_folder,
    read_json,
    sha256_of,
    write_aside,
    write_json,
)
from pointdistill.data.files.processes import ordered_map
from pointdistill.data.files.schema import refusing_damage
from pointdistill.errors import ConfigError, DataError, one_line
from pointdistill.reporter import SILENT, Reporter

FORMAT = "pointdistill export"
EXPORT_NAME = "export.json"
SUMS_NAME = "SHA256SUMS"
LICENCES_NAME = "LICENCES.txt"

BLOCK_POINTS = 2**20
"""Most points that a process has in memory as float32, 12 MiB, unless a single shape has more."""

_MARKS = ".finished"
_PLAN = ".plan.json"
_OWN = frozenset(name.split(".")[0].upper() for name in (EXPORT_NAME, SUMS_NAME, LICENCES_NAME))
"""What a name may not begin with."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """The result of an export."""

    path: Path
    shapes: int
    files: int
    resumed: int
    """Shapes that an earlier, interrupted call had written."""

    was_complete: bool = False


@dataclass(frozen=True, slots=True)
class _Unit:
    """The shapes of one shard, which become one file, or a file each."""

    corpus: Path
    folder: Path
    """The folder that is being written."""

    layout: str
    number: int
    first: int
    """The number of its first shape in the corpus."""

    shard: ShardRecord
    source: SourceRecord
    labels: tuple[str, ...]
    """All labels of the corpus; a class is an index into them."""

    clashes: frozenset[str]  # paths in lower case that several shapes would have

    def blocks(self) -> Iterator[RowBlock]:
        """Its shapes, a block at a time."""
        rows = np.arange(self.shard.shapes)
        return read_rows(self.corpus, self.shard, self.source, rows, most_points=BLOCK_POINTS)

    def file(self, ending: str) -> str:
        """The name of its one file."""
        return f"{safe_name(self.source.name, _OWN)}-{self.number:05d}.{ending}"


def export_corpus(
    corpus: Path,
    output: Path,
    *,
    layout: str,
    workers: int | None = None,
    reporter: Reporter = SILENT,
) -> ExportReport:
    """Write a corpus in another format; a process has at most a block of points in memory.

    Args:
        corpus: the folder.
        output: folder to make; must not exist, unless it holds this very export.
        layout: one of ``LAYOUTS``.
        workers: processes; 1 works in this process, None uses every usable core. The bytes do not depend on it.
        reporter: hears of the progress.

    Raises:
        ConfigError: if the format is unknown, or what it needs is not installed.
        CorpusError: if the corpus is damaged; names the shape.
        DataError: if the output exists, another process is writing it, or the disk is full.
    """
    if layout not in LAYOUTS:
        msg = f"the format must be one of {', '.join(LAYOUTS)}, got {layout!r}"
        raise ConfigError(msg, settings=("format",))
    if layout == "parquet":
        _parquet()
    opened = open_corpus(corpus)
    manifest = opened.manifest
    # As JSON has them: a tuple comes back as a list.
    origins = json.loads(json.dumps([asdict(source) for source in manifest.sources]))
    plan = {"content": manifest.content, "layout": layout, "shards": len(manifest.shards)}
    plan["sources"] = origins
    if output.exists():
        return _finished(output, plan)
    output = check_replaceable(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.with_name(f".{output.name}.unfinished")
    msg = f"{output}: another process is writing it; wait for it, or choose another output"
    check_own_folder(folder)
    clashes = _clashes(opened) if layout == "ply" else frozenset[str]()
    with room_needed(output), hold_folder(folder, DataError(msg)):
        _begin(folder, plan)
        sources = {source.name: source for source in manifest.sources}
        units, first = [], 0
        for number, shard in enumerate(manifest.shards):
            units.append(
                _Unit(
                    *(corpus, folder, layout, number, first),
                    *(shard, sources[shard.source], opened.label_names, clashes),
                )
            )
            first += shard.shapes
        resumed = _write_units(units, manifest.shapes, workers, reporter)
        files = _write_sums(folder, len(units))
        _write_licences(folder / LICENCES_NAME, manifest.sources)
        write_json(
            folder / EXPORT_NAME,
            {
                "format": FORMAT,
                "version": 1,
                "frame": FRAME,
                **plan,
                "shapes": manifest.shapes,
                "files": files,
                "sums_sha256": sha256_of(folder / SUMS_NAME),
                "label_names": list(opened.label_names),
            },
        )
        shutil.rmtree(folder / _MARKS)
        (folder / _PLAN).unlink()
        if hasattr(os, "sync"):
            os.sync()  # once, and not for each of a million files
        folder.rename(output)
        (output / LOCK_NAME).unlink(missing_ok=True)
        flush(output.parent)
    return ExportReport(output, manifest.shapes, files, resumed)


def is_export(folder: Path) -> bool:
    """Whether a folder holds an export rather than a corpus."""
    return (folder / EXPORT_NAME).is_file()


def find_export_damage(
    folder: Path, *, progress: Callable[[int, int], None] | None = None
) -> Iterator[str]:
    """A line for each file of an export that is missing or has changed, as soon as it is known.

    Raises:
        DataError: if what ``export.json`` says of the export cannot be read.
    """
    about = _about(folder)
    sums = folder / SUMS_NAME
    if not sums.is_file() or sha256_of(sums) != about["sums_sha256"]:
        yield f"{SUMS_NAME}: {'changed since it was written' if sums.is_file() else 'missing'}"
        return
    with sums.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            checksum, _, name = line.rstrip("\n").partition("  ")
            path = folder / name
            if leads_outside(name) or not path.resolve().is_relative_to(folder.resolve()):
                yield f"{name}: is in another folder, and is not read"
            elif not path.is_file():
                yield f"{name}: missing"
            elif sha256_of(path) != checksum:
                yield f"{name}: changed since it was written"
            if progress:
                progress(number, int(about["files"]))


def _about(folder: Path) -> dict[str, Any]:
    """What ``export.json`` says.

    Raises:
        DataError: if it cannot be read, or is not one.
    """
    path = folder / EXPORT_NAME
    with refusing_damage(path, advice="export the corpus again"):
        about = read_json(path)
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            msg = f"its format is not {FORMAT!r}"
            raise DataError(msg)
        int(about["files"]), int(about["shapes"]), str(about["sums_sha256"])
    return about


def _finished(output: Path, plan: dict[str, Any]) -> ExportReport:
    """The report of an export that is there already."""
    if is_export(output):
        about = _about(output)
        if all(about.get(key) == value for key, value in plan.items()):
            return ExportReport(output, int(about["shapes"]), int(about["files"]), 0, True)
    msg = f"{output}: exists and is another thing; choose another output, or remove it"
    raise DataError(msg, settings=("output",))


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Keep what an earlier call for the same corpus and format has written; remove anything else."""
    begun = folder / _PLAN
    if not begun.is_file() or read_json(begun) != plan:
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK_NAME:
                path.unlink()
        write_json(begun, plan)
    (folder / _MARKS).mkdir(exist_ok=True)


def _mark(folder: Path, number: int) -> Path:
    """File with the checksums of a finished unit's files, as they will be in ``SHA256SUMS``."""
    return folder / _MARKS / f"{number:05d}"


def _write_units(
    units: Sequence[_Unit], total: int, workers: int | None, reporter: Reporter
) -> int:
    """Write the units that are missing; returns how many shapes were there already."""
    missing = [unit for unit in units if not _mark(unit.folder, unit.number).is_file()]
    done = resumed = total - sum(unit.shard.shapes for unit in missing)
    reporter.progress("exporting", done, total, unit="shapes")
    for unit, _ in zip(missing, ordered_map(_write_unit, missing, workers=workers), strict=True):
        done += unit.shard.shapes
        reporter.progress("exporting", done, total, unit="shapes")
    return resumed


def _write_unit(unit: _Unit) -> None:
    """Write the files of one shard, and then their checksums, which marks it as finished."""
    with write_aside(_mark(unit.folder, unit.number)) as aside, aside.open("wb") as marks:
        names = list(LAYOUTS[unit.layout](unit))
        for name in names:
            marks.write(f"{sha256_of(unit.folder / name)}  {name}\n".encode())
        # A mark that outlives a loss of power is believed, so what it is of comes before it.
        if len(names) > 1 and hasattr(os, "sync"):
            os.sync()  # once, and not for each of thousands of files
        else:
            for name in names:
                flush(unit.folder / name)


def _write_sums(folder: Path, units: int) -> int:
    """Join the checksums of all units; returns how many files there are."""
    files = 0
    with write_aside(folder / SUMS_NAME) as aside, aside.open("wb") as whole:
        for number in range(units):
            with _mark(folder, number).open("rb") as lines:
                for line in lines:
                    whole.write(line)
                    files += 1
    return files


def _write_licences(path: Path, sources: Sequence[SourceRecord]) -> None:
    """For people: what each source is, where it comes from, and what its licence allows."""
    lines = []
    for source in sources:
        lines += [
            f"{source.name}: {source.kept:,} shapes",
            f"  licence: {source.licence}",
            f"  origin: {source.origin}",
        ]
        if source.archive is not None:
            lines.append(f"  archive: {source.archive}, SHA-256 {source.archive_sha256}")
        lines.append("")
    with write_aside(path) as aside:
        aside.write_bytes("\n".join(one_line(line) for line in lines).encode())


def _clouds(block: RowBlock) -> Iterator[tuple[str, NDArray[np.float32], int, Any]]:
    """Id, points (n, 3) float32, label, and parts (n,) or None, of each shape of a block."""
    for row in range(len(block)):
        here = slice(int(block.offsets[row]), int(block.offsets[row + 1]))
        points = restore(block.points[here], block.center[row].tobytes(), float(block.scale[row]))
        part = None if block.part is None else block.part[here]
        yield bytes(block.id[row]).decode(), points, int(block.label[row]), part


def _write_npz(unit: _Unit) -> Iterator[str]:
    """One file with the arrays of the shard: the points of all its shapes end to end, and where each begins."""
    name = unit.file("npz")
    ids, labels, parts, offsets = [], [], [], [0]
    with zipfile.ZipFile(unit.folder / name, "w") as archive:
        with archive.open(_zip_entry("points.npy"), "w", force_zip64=True) as file:
            shape = (unit.shard.points, 3)
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in unit.blocks():
                for shape_id, points, label, part in _clouds(block):
                    file.write(np.ascontiguousarray(points, "<f4").data.cast("B"))
                    ids.append(shape_id)
                    labels.append(label)
                    offsets.append(offsets[-1] + len(points))
                    parts += [] if part is None else [part]
        arrays: dict[str, NDArray[Any]] = {
            "offsets": np.array(offsets, np.int64),
            "id": np.array(ids, np.str_),
            "label": np.array(labels, np.int32),
            "label_names": np.array(unit.source.labels, np.str_),
            "source": np.array(unit.source.name),
        }
        arrays |= {"part": np.concatenate(parts)} if parts else {}
        for key, array in arrays.items():
            with archive.open(_zip_entry(f"{key}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    yield name


def _zip_entry(name: str) -> zipfile.ZipInfo:
    """An entry with the same date and system on every machine."""
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system = 3
    return entry


def _write_ply(unit: _Unit) -> Iterator[str]:
    """A file for each shape, below the folder of its source, at the path that its id is."""
    for block in unit.blocks():
        for shape_id, points, _, part in _clouds(block):
            name = _ply_name(unit.source.name, shape_id, unit.clashes)
            path = unit.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(ply(points, part))
            yield name


def ply(points: NDArray[np.float32], part: NDArray[np.uint8] | None) -> bytes:
    """A binary PLY file of (n, 3) points, with the (n,) parts that they belong to if these are known."""
    fields = [(axis, "<f4") for axis in "xyz"] + ([] if part is None else [("part", "u1")])
    vertices = np.empty(len(points), fields)
    for k, axis in enumerate("xyz"):
        vertices[axis] = points[:, k]
    if part is not None:
        vertices["part"] = part
    properties = [f"property float {axis}" for axis in "xyz"]
    properties += [] if part is None else ["property uchar part"]
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    return "\n".join([*head, *properties, "end_header\n"]).encode() + vertices.tobytes()


def _ply_name(source: str, shape_id: str, clashes: frozenset[str] = frozenset()) -> str:
    """The path of a shape's file; with a checksum in it where others differ from it in nothing but upper case."""
    name = f"{safe_name(source, _OWN)}/{ply_path(shape_id)}"
    digest = hashlib.sha256(f"{source}/{shape_id}".encode()).hexdigest()[:16]
    return f"{name.removesuffix('.ply')}%{digest}.ply" if name.lower() in clashes else name


def _clashes(corpus: Corpus) -> frozenset[str]:
    """Paths in lower case that several shapes would have on systems that do not tell it from upper case."""
    sources = (shard.source for shard in corpus.manifest.shards for _ in range(shard.shapes))
    paths = Counter(_ply_name(*one).lower() for one in zip(sources, corpus.ids(), strict=True))
    return frozenset(path for path, times in paths.items() if times > 1)


def ply_path(shape_id: str) -> str:
    """The path of a shape's file: its id, whose parts are folders, with anything unusual as in a URL.

    Different ids give different paths: a folder never has the ending of the files.
    """
    *folders, last = (safe_name(name, _OWN) for name in shape_id.split("/"))
    above = [
        f"{name[:-4]}%2E{name[-3:]}" if name.lower().endswith(".ply") else name for name in folders
    ]
    return "/".join([*above, f"{last}.ply"])


def _write_webdataset(unit: _Unit) -> Iterator[str]:
    """A tar file with, for each shape, its points, what is known of it, its class and its parts."""
    name = unit.file("tar")
    number = {label: k for k, label in enumerate(unit.labels)}
    place = unit.first
    with tarfile.open(unit.folder / name, "w", format=tarfile.USTAR_FORMAT) as archive:
        for block in unit.blocks():
            for shape_id, points, label, part in _clouds(block):
                text = unit.source.labels[label] if label >= 0 else None
                about = {"id": shape_id, "source": unit.source.name, "label": text}
                about["licence"] = unit.source.licence
                members = {"points.npy": _npy(points)}
                members["json"] = json.dumps(about, ensure_ascii=False).encode()
                members |= {} if text is None else {"cls": str(number[text]).encode()}
                members |= {} if part is None else {"part.npy": _npy(part)}
                for ending, content in members.items():
                    # No time, user or group: these are 0 in a new entry.
                    entry = tarfile.TarInfo(f"{place:09d}.{ending}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
                place += 1
    yield name


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _write_parquet(unit: _Unit) -> Iterator[str]:
    """One file with a row for each shape; a row group is what was in memory."""
    pa, pq = _parquet()
    name = unit.file("parquet")
    triple = pa.list_(pa.field("element", pa.float32(), nullable=False), 3)
    columns = [("id", pa.string()), ("source", pa.string()), ("label", pa.string())]
    columns.append(("points", pa.list_(triple)))
    columns.append(("part", pa.list_(pa.uint8())))
    about = {"licence": unit.source.licence, "origin": unit.source.origin, "frame": FRAME}
    schema = pa.schema(columns, metadata=about)
    with pq.ParquetWriter(unit.folder / name, schema, compression="zstd") as writer:
        for block in unit.blocks():
            clouds = list(_clouds(block))
            offsets = pa.array(block.offsets.astype(np.int32))
            flat = np.concatenate([points for _, points, _, _ in clouds]).reshape(-1)
            points = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=triple)
            names = [unit.source.labels[k] if k >= 0 else None for _, _, k, _ in clouds]
            no_parts = pa.nulls(len(clouds), pa.list_(pa.uint8()))
            parts = (
                no_parts
                if block.part is None
                else pa.ListArray.from_arrays(offsets, pa.array(block.part))
            )
            arrays = [
                pa.array([shape_id for shape_id, _, _, _ in clouds]),
                pa.array([unit.source.name] * len(clouds)),
                pa.array(names, pa.string()),
                pa.ListArray.from_arrays(offsets, points),
                parts,
            ]
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=max(1, len(clouds)))
    yield name


def _parquet() -> tuple[Any, Any]:
    """The modules ``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        ConfigError: if they are not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        msg = "Parquet needs pyarrow; pip install 'pointdistill[parquet]', or choose another format"
        raise ConfigError(msg, settings=("format",)) from error


LAYOUTS: dict[str, Callable[[_Unit], Iterator[str]]] = {
    "npz": _write_npz,
    "ply": _write_ply,
    "webdataset": _write_webdataset,
    "parquet": _write_parquet,
}
"""The formats by name; each writes the files of a shard and yields their names."""

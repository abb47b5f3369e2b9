"""``corpus.json``: what a corpus holds, where it came from, and how it was made.

It names no time, host or absolute path: the same inputs and settings give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pointdistill.data.files.files import read_json, write_json
from pointdistill.data.files.schema import from_plain, refusing_damage, short_repr
from pointdistill.errors import CorpusError

MANIFEST_NAME = "corpus.json"
REFUSED_NAME = "refused.jsonl"
"""File in a corpus folder with a line for each refused shape; absent where there is none."""

FILES_NAME = "files.sha256"
"""File in the corpus of a user's folder: the checksum of each of its files, as ``sha256sum`` prints them. Its own
checksum is the source's ``archive_sha256``."""

BUILDING_NAME = ".building"
"""Folder inside a corpus folder that holds the state of an unfinished build."""

COMMERCIAL_ONLY = "commercial_only"
"""Setting of a source that is in a corpus because its licence allows commercial use of all of its shapes."""

LONGEST_SOURCE = 100
"""Characters of a source's name, after which its shards are called."""

FORMAT = "pointdistill corpus"
VERSION = 1
FRAME = "right-handed, z up"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFacts:
    """What is known of a source before any of its shapes is read."""

    name: str
    """Name under which its shapes are recorded; a stand-in's ends in ``-stand-in``."""

    licence: str
    """What the source's licence allows, in a few words."""

    origin: str
    """Where it comes from, for people."""

    turned: str
    """How its axes became z up: ``none``, or the order of the old axes, such as ``zxy``."""

    labels: tuple[str, ...] = ()
    """Label names; a row's label is an index into them."""

    part_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For a label, the names of its shapes' parts; a point's part is an index into them."""

    stand_in: bool = False
    """True where the archive only has the layout of the real one."""

    archive: str | None = None
    """File or folder name of the archive, without its path; None where there is none."""

    archive_sha256: str | None = None
    """Hexadecimal SHA-256 of the archive, or of a folder's list of names and checksums."""

    settings: Mapping[str, Any]
    """Settings of the source that decide which shapes there are and what they look like."""

    def stated(self) -> dict[str, Any]:
        """These facts by name, without what a record adds to them."""
        return {field.name: getattr(self, field.name) for field in fields(SourceFacts)}


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRecord(SourceFacts):
    """A source in a finished corpus."""

    kept: int
    """Shapes of this source in the corpus."""

    refused: int
    """Shapes that could not be used; ``refused.jsonl`` names each with its cause."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """One HDF5 file of a corpus; its shapes come from one source."""

    file: str
    source: str
    shapes: int
    points: int
    """Points of all its shapes together."""

    bytes: int
    """Size of the file."""

    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The whole of ``corpus.json``."""

    seed: int
    """Every shape's points depend on this, its source and its id alone."""

    points: int
    """Points per shape that were requested; a shape with fewer has all of its points."""

    content: str
    """SHA-256 over the rows' own checksums in (source, id) order: equal for equal data."""

    refused_sha256: str | None
    """SHA-256 of ``refused.jsonl``; None where nothing was refused."""

    sources: tuple[SourceRecord, ...]
    shards: tuple[ShardRecord, ...]

    @property
    def shapes(self) -> int:
        """Number of shapes in the corpus."""
        return sum(shard.shapes for shard in self.shards)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest, whole or not at all; as ``corpus.json`` it makes its folder a corpus."""
    head = {"format": FORMAT, "version": VERSION, "frame": FRAME, "shapes": manifest.shapes}
    write_json(path, head | asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read ``corpus.json``.

    Raises:
        CorpusError: if the folder is no corpus, is unfinished, damaged, or of another format
            version.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise CorpusError(_why_no_manifest(folder))
    with refusing_damage(path, advice="prepare the corpus again", error=CorpusError):
        stored = read_json(path)
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            msg = f"{path}: its format is not {FORMAT!r}, so not a corpus; name another folder"
            raise CorpusError(msg)
        if stored.get("version") != VERSION:
            msg = (
                f"{path}: format version {short_repr(stored.get('version'))}, this program reads version "
                f"{VERSION}; update pointdistill or prepare the corpus again"
            )
            raise CorpusError(msg)
        manifest = from_plain(Manifest, stored, partial=True)
        _check(manifest)
        stated = stored.get("shapes", manifest.shapes)
        if stated != manifest.shapes:
            msg = f"says {short_repr(stated)} shapes, and its shards {manifest.shapes}"
            raise CorpusError(msg)
        return manifest


def _check(manifest: Manifest) -> None:
    """Raise unless the counts are possible, and each shard is a file of the corpus folder."""
    names = [source.name for source in manifest.sources]
    least = min(
        (count for source in manifest.sources for count in (source.kept, source.refused)), default=0
    )
    if manifest.seed < 0 or manifest.points < 1 or least < 0 or len(set(names)) < len(names):
        msg = "a count or the seed is negative, or a source is listed twice"
        raise CorpusError(msg)
    for name in names:
        check_source_name(name)
    for shard in manifest.shards:
        check_record(shard)


def check_source_name(name: str) -> None:
    """Raise unless a source's name can be part of a file's name: shards and folders are called after it.

    Raises:
        CorpusError: naming it; a stranger's cannot lead out of the folder that is written.
    """
    if not name or name.startswith(".") or len(name) > LONGEST_SOURCE or set(name) & set("/\\"):
        msg = (
            f"source name {name[:80]!r} is no file name; expected up to {LONGEST_SOURCE} characters, no / or \\, "
            "and no dot before them"
        )
        raise CorpusError(msg)
    if not name.isprintable():
        msg = f"source name {name[:80]!r} holds control characters"
        raise CorpusError(msg)


def check_record(shard: ShardRecord) -> None:
    """Raise unless a shard's file lies in the corpus folder, and is large enough for what it is said to hold.

    Raises:
        CorpusError: naming the file; a stranger's cannot point elsewhere.
    """
    if Path(shard.file).name != shard.file or shard.file in {"", ".", ".."} or "\0" in shard.file:
        msg = f"shard file {shard.file[:80]!r} leads out of the corpus folder"
        raise CorpusError(msg)
    # 6 bytes a point, and more than 32 for each shape's numbers; the size itself is compared with the file's.
    least = 6 * shard.points + 32 * shard.shapes
    if shard.shapes < 1 or shard.points < shard.shapes or least > shard.bytes:
        msg = (
            f"shard {shard.file} claims {shard.shapes} shapes of {shard.points} points "
            f"in {shard.bytes} bytes"
        )
        raise CorpusError(msg)


def _why_no_manifest(folder: Path) -> str:
    make = "`pointdistill prepare-data`"
    if not folder.exists():
        return f"{folder}: no such corpus; make one with {make}"
    if (folder / BUILDING_NAME).is_dir():
        return f"{folder}: this corpus is not finished; run the same {make} again to go on"
    return f"{folder}: not a corpus, it holds no {MANIFEST_NAME}; make one with {make}"

"""``docs/sources.md`` against the table of sources, and its example as a source."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from pointdistill.data.sources import SOURCES, SourceInfo, SourceRequest
from tests.data.source_archives import FROM_Y_UP, WEDGE, WEDGE_FACES, ranges, write_zip

PAGE = (Path(__file__).parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")


def test_the_page_has_every_row_as_the_table_has_it() -> None:
    rows = {
        row.split("|")[1].strip(" `"): row for row in PAGE.splitlines() if row.startswith("| `")
    }
    for info in SOURCES:
        if info.files:
            row = next(r for r in PAGE.splitlines() if r.startswith(f"| `{info.name}` | ["))
            for fact in (
                info.archive,
                info.origin,
                info.access,
                info.licence,
                f"{info.official:,}",
            ):
                assert str(fact) in row, info.name
            assert info.name in rows
        else:
            assert f"`{info.name}`" in PAGE


def test_the_example_of_a_new_source_works(tmp_path: Path) -> None:
    module, row = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict[str, Any] = {"__name__": "bricks"}
    exec(compile(module, "bricks", "exec"), names)
    info = eval(row, {"SourceInfo": SourceInfo})
    stl = trimesh.Trimesh(WEDGE, WEDGE_FACES).export(file_type="stl")
    write_zip(tmp_path / "bricks.zip", {"red/2x4.stl": stl, "red/readme.txt": "x"})
    source = names["open_source"](SourceRequest(path=tmp_path), info)
    (entry,) = source.entries()
    assert (entry.id, source.facts.labels) == ("red/2x4", ("red",))
    points = source.read(entry, 256, rng=np.random.default_rng(0)).points
    assert ranges(points) == FROM_Y_UP

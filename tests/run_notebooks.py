"""Runs every notebook of examples/ from its first cell to its last, each in a folder of its own.

Run: python tests/run_notebooks.py [NAME…]
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
SECONDS = 600
"""Longest time for a cell: a whole notebook takes less than two minutes on one free core."""


def main(*names: str) -> int:
    """Print a line for each notebook; 1 if one fails."""
    failed = 0
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        if not names or path.stem in names:
            began = time.monotonic()
            fault = run(path)
            failed += bool(fault)
            print(
                f"{'failed' if fault else 'passed'}  {path.name}  {time.monotonic() - began:.0f} s",
                flush=True,
            )
            if fault:
                print(fault)
    return int(failed > 0)


def run(path: Path) -> str:
    """What is wrong with a notebook; empty if nothing is."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
        client = NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": folder}})
        try:
            client.execute()
        except Exception as error:  # whatever a cell raises
            return str(error)
    # A command after `!` that fails raises nothing.
    said = [out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", [])]
    faults = [
        row for text in said for row in text.splitlines() if row.startswith(("error:", "Traceback"))
    ]
    return "\n".join(faults)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

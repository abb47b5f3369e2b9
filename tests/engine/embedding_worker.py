"""Embeds as one of several processes, and says what it did; for `test_embedding_shared`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from pointdistill.engine.embedding import embed as embed_module
from pointdistill.engine.embedding.file import Chunk, WorkFolder
from tests.engine.test_embedding import request


def main(output: str, victim: str = "") -> None:
    """Compute a chunk of one shape at a time; as the second process end within the first chunk, if asked to."""
    saved: list[int] = []
    save = WorkFolder.save
    second = os.environ["RANK"] == "1"

    def noted(work: WorkFolder, number: int, chunk: Chunk) -> None:
        if second:
            Path("begun").touch()
            if victim:
                os.kill(os.getpid(), signal.SIGKILL)
        while not Path("begun").exists():
            time.sleep(0.01)  # else the first could be done before the second has begun
        saved.append(number)
        save(work, number, chunk)

    WorkFolder.save = noted  # type: ignore[method-assign]
    embed_module.CHUNK_SHAPES = 1
    report = embed_module.embed(request(output, workers=0))
    print(f"saved={len(saved)} shapes={report.shapes} helper={report.is_helper}")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])

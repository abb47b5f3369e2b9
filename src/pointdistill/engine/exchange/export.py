"""An encoder in a folder of its own, with all that is known of it."""

from __future__ import annotations

from pathlib import Path

from pointdistill.engine.config import to_plain
from pointdistill.engine.exchange.record import find_results, training_record
from pointdistill.engine.exchange.weights import (
    check_free_for_encoder,
    load_encoder,
    locate_encoder,
    read_facts,
    save_encoder,
)


def export_encoder(source: Path | str, output: Path, *, working: Path | None = None) -> Path:
    """Copy the encoder of ``source`` to the folder ``output``, checked on the way; where it was found.

    What was measured with these weights goes with them, and how they came about.

    Args:
        source: as for ``load_encoder``.
        output: made if absent.
        working: where ``evaluate`` was run; the current folder by default.

    Raises:
        CheckpointError: if ``source`` holds no encoder or a damaged one.
        DataError: if ``output`` exists and is not an encoder folder.
    """
    stored = locate_encoder(source)
    check_free_for_encoder(output)
    encoder, facts = load_encoder(stored), read_facts(stored)
    results = find_results(encoder, stored, facts, working=working or Path())
    save_encoder(
        encoder,
        output,
        sources=facts.get("sources", []),
        training=training_record(stored, facts),
        results=[to_plain(result) for result in results],
    )
    return stored

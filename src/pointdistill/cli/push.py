"""``pointdistill push``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def push(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Run, encoder folder or file, fine-tuned model, or owner/name on the Hub.",
        ),
    ],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Name on the Hub.")],
    card_only: Annotated[
        Path | None,
        typer.Option(help="Write the folder that would be uploaded here, and upload nothing."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="For you alone, if the repository is new.")
    ] = False,
) -> None:
    """Upload weights to the Hugging Face Hub with a model card: recipe, results, licences. Needs your token."""
    from pointdistill.engine.exchange.push import CARD, prepare, upload
    from pointdistill.engine.exchange.record import encoder_line

    made = prepare(source, repository, card_only or Path("hub", repository))
    if made.is_encoder:
        typer.echo(encoder_line(made.source), err=True)
    licence = made.licence.identifier + (f" ({made.licence.name})" if made.licence.name else "")
    count = f"{made.results} result{'' if made.results == 1 else 's'}"
    typer.echo(f"{made.source} -> {made.folder}: licence {licence}, {count}")
    if made.non_commercial:
        typer.echo(f"no commercial use: it saw {', '.join(made.non_commercial)}")
    if card_only is not None:
        again = shlex.join(["pointdistill", "push", source, repository])
        typer.echo(f"next: read {shlex.quote(str(made.folder / CARD))}, then {again}")
        return
    typer.echo(upload(made.folder, repository, private=private))
    typer.echo(f"next: anywhere, in Python: {made.load}")

"""``pointdistill --version``."""

from __future__ import annotations

from typing import Annotated

import typer

import pointdistill


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pointdistill {pointdistill.__version__}")
        raise typer.Exit


def show_version(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Self-supervised representations of 3-D shapes, from meshes and point clouds, with no labels."""

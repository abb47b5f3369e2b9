"""Commands about the program itself: ``pointdistill doctor``, ``recipes`` and ``--version``."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from pointdistill.cli.console import print_table
from pointdistill.version import __version__


def doctor() -> None:
    """Print versions, devices, what is installed, and what would stop a run."""
    from rich.console import Console
    from rich.table import Table

    from pointdistill.engine.doctor import examine

    report = examine()
    console = Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in report.facts:
        table.add_row(name, value)
    console.print(table)
    for problem in report.problems:
        console.print(f"problem: {problem}", style="bold red", markup=False, soft_wrap=True)
    for remark in report.remarks:
        console.print(f"note: {remark}", style="yellow", markup=False, soft_wrap=True)
    if report.problems:
        raise typer.Exit(1)
    console.print("nothing here would stop a run", style="green")


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this recipe in full, as a file for --config.")
    ] = None,
) -> None:
    """List the named runs, or print one of them with every setting."""
    from pointdistill.engine.recipes import RECIPES, find_recipe
    from pointdistill.engine.reporting.tables import Table
    from pointdistill.engine.settings import as_toml

    if name is not None:
        recipe = find_recipe(name)
        for line in recipe.about.splitlines():
            typer.echo(f"# {line}".rstrip())
        typer.echo(f"# Run: pointdistill pretrain --recipe {shlex.quote(name)}")
        typer.echo("")
        typer.echo(as_toml(recipe.config), nl=False)
        return
    rows = tuple(
        (
            recipe.name,
            str(recipe.config.mode),
            f"{recipe.config.steps} steps"
            if recipe.config.steps
            else f"{recipe.config.epochs} epochs",
            str(recipe.config.batch_size),
            recipe.summary,
        )
        for recipe in RECIPES.values()
    )
    print_table(Table("Recipes", ("name", "mode", "length", "batch", "what it is"), rows))
    typer.echo(
        "next: pointdistill recipes NAME   (one in full), or: pointdistill plan --recipe NAME"
    )


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"pointdistill {__version__}")
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

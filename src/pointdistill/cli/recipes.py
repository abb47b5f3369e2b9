"""``pointdistill recipes``."""

from __future__ import annotations

from typing import Annotated

import typer


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this one whole, as a file for --config.")
    ] = None,
) -> None:
    """List the runs that have a name, or print one of them with every setting."""
    from pointdistill.cli.console import print_table
    from pointdistill.engine.recipes import RECIPES, find_recipe
    from pointdistill.engine.reporting.tables import Table
    from pointdistill.engine.settings import as_toml

    if name is not None:
        found = find_recipe(name)
        for line in found.about.splitlines():
            typer.echo(f"# {line}".rstrip())
        typer.echo("")
        typer.echo(as_toml(found.config), nl=False)
        return
    rows = tuple(
        (
            found.name,
            str(found.config.mode),
            f"{found.config.steps} steps"
            if found.config.steps
            else f"{found.config.epochs} epochs",
            str(found.config.batch_size),
            found.summary,
        )
        for found in RECIPES.values()
    )
    print_table(Table("Recipes", ("name", "mode", "length", "batch", "what it is"), rows))
    typer.echo(
        "next: pointdistill recipes NAME   (all of one), or: pointdistill plan --recipe NAME"
    )

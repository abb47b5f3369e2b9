"""``pointdistill doctor``."""

from __future__ import annotations

import typer


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

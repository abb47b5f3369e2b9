"""Tasks for developers and CI. ``nox`` without arguments runs lint, types and tests."""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True


@nox.session
def lint(session: nox.Session) -> None:
    """Style and simple mistakes: ruff."""
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Strict static types: mypy."""
    session.install("-e", ".[dev]")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite, on a CPU."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Benchmarks, measured side by side in one run (``-- learning``: what pretraining is worth)."""
    session.install("-e", ".[bench]")
    names = session.posargs or [
        "views",
        "step",
        "threads",
        "loader",
        "train",
        "corpus",
        "meshes",
        "embed",
    ]
    for name in names:
        session.run("python", f"benchmarks/{name}.py")


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """50,000 damaged files of all formats, and 5,000 damaged records (``-- 0.1`` for a tenth); half an hour."""
    session.install("-e", ".[test]")
    share = float(session.posargs[0]) if session.posargs else 1.0
    session.run("python", "tests/fuzz_formats.py", "--count", str(round(50_000 * share)))
    session.run(
        "pytest",
        "tests/engine/test_records_fuzz.py",
        "--timeout=3600",
        env={"POINTDISTILL_FUZZ": str(round(5_000 * share))},
    )


@nox.session(default=False)
def bundled(session: nox.Session) -> None:
    """Train the encoder that comes with the program again: corpus, run, statistics; two hours, resumable."""
    session.install("-e", ".")
    corpus, measured, run = "data/procedural-mini", "data/procedural", "runs/procedural-mini"
    shapes = ("pointdistill", "prepare-data", "builtin", "--points", "2048")
    session.run(
        *(*shapes, "--procedural", "0.5", "--shapes", "20000", "--seed", "7", "--output", corpus)
    )
    session.run(
        *(*shapes, "--procedural", "1", "--shapes", "1000", "--seed", "8", "--output", measured)
    )
    resume = ["--resume"] if Path(run, "checkpoints").is_dir() else []
    start = ["--recipe", "procedural-mini", "--data", corpus] if not resume else []
    session.run("pointdistill", "pretrain", *start, "--run", run, *resume)
    folder = "src/pointdistill/engine/weights/bundled"
    session.run(
        *("pointdistill", "export", folder, "--encoder", run, "--half", "--corpus", measured)
    )


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """The site, in build/site, with warnings as errors (``-- pictures`` draws its pictures again first)."""
    session.install("-e", ".[docs]")
    if "pictures" in session.posargs:
        session.run("python", "docs/make_pictures.py")
    session.run("sphinx-build", "--fail-on-warning", "--keep-going", "docs", "build/site")

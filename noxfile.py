"""Tasks for developers and CI. ``nox`` without arguments runs lint, types and tests."""

from __future__ import annotations

import re
import tomllib
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
def kernels(session: nox.Session) -> None:
    """Build all Triton kernels, and interpret ours beside the reference on 1,000 random inputs; minutes."""
    session.install("-e", ".[test]", "triton")
    session.run(
        "pytest",
        "tests/model/test_kernels.py",
        "--timeout=0",
        env={"POINTDISTILL_KERNEL_INPUTS": session.posargs[0] if session.posargs else "1000"},
    )
    # Too long for a test: what Inductor makes of a compiled step, at the smallest size.
    build = ("benchmarks/count_kernels.py", "--size", "tiny", "--batch", "2", "--points", "256")
    session.run("python", *build, "--build")


@nox.session(default=False)
def bundled(session: nox.Session) -> None:
    """Train the encoder that comes with the program again: corpus, run, statistics; two hours, resumable."""
    session.install("-e", ".")
    corpus, measured, run = "data/procedural-mini", "data/procedural", "runs/procedural-mini"
    shapes = ("pointdistill", "prepare-data", "builtin", "--points", "2048")
    session.run(
        *(*shapes, "--procedural", "0.5", "--shapes", "40000", "--seed", "7", "--output", corpus)
    )
    session.run(
        *(*shapes, "--procedural", "1", "--shapes", "1000", "--seed", "8", "--output", measured)
    )
    resume = ["--resume"] if Path(run, "checkpoints").is_dir() else []
    start = ["--recipe", "procedural-mini", "--data", corpus] if not resume else []
    session.run("pointdistill", "pretrain", *start, "--run", run, "--compile", "on", *resume)
    folder = "src/pointdistill/engine/weights/bundled"
    session.run(
        *("pointdistill", "export", folder, "--encoder", run, "--half", "--corpus", measured)
    )


@nox.session(default=False)
def browser(session: nox.Session) -> None:
    """Open every page and picture in a real Chromium, at 360 and 1,280 pixels; skipped where there is none."""
    session.install("-e", ".[test,browser,docs]")
    session.run("pytest", "-n", "0", "tests/pages_in_browser.py", *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """The site, in build/site, with warnings as errors (``-- pictures`` draws its pictures again first)."""
    session.install("-e", ".[docs]")
    if "pictures" in session.posargs:
        session.run("python", "docs/make_pictures.py")
    session.run("sphinx-build", "--fail-on-warning", "--keep-going", "docs", "build/site")


@nox.session(default=False)
def notebooks(session: nox.Session) -> None:
    """Every notebook of examples/, from its first cell to its last (``-- NAME`` for one of them)."""
    session.install("-e", ".[notebooks,onnx]")
    session.run("python", "tests/run_notebooks.py", *session.posargs)


@nox.session(default=False)
def documented_lines(session: nox.Session) -> None:
    """Every command line of README, docs/ and the commands' help, on tiny data; the list is in build/."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.documented_lines", *session.posargs)


@nox.session(default=False, reuse_venv=False)
@nox.parametrize("form", ["wheel", "sdist"])
def dist(session: nox.Session, form: str) -> None:
    """Build a wheel and an sdist, install each in an empty environment, and try it (``--force-python 3.13``)."""
    folder = Path(session.create_tmp()).absolute()
    for old in folder.glob("pointdistill-*"):
        old.unlink()
    session.install("build")
    session.run("python", "-m", "build", f"--{form}", "--outdir", str(folder))
    session.run("pip", "uninstall", "--yes", "build", "pyproject_hooks", "packaging")
    (package,) = folder.glob("pointdistill-*")
    session.install(str(package))
    smoke = Path("tests/smoke.py").absolute()
    session.chdir(folder)
    session.run("python", str(smoke))


@nox.session(default=False, reuse_venv=False)
def minimums(session: nox.Session) -> None:
    """The oldest versions of all dependencies that pyproject.toml allows, together; on Python 3.11."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [re.match(r"([\w-]+)>=([\w.]+)", line) for line in project["dependencies"]]
    oldest = [f"{found[1]}=={found[2]}" for found in wanted if found]
    if len(oldest) != len(project["dependencies"]):
        session.error("a dependency without a lower bound")
    session.install(*oldest)
    session.install("--no-deps", ".")
    smoke = Path("tests/smoke.py").absolute()
    session.chdir(session.create_tmp())
    session.run("python", str(smoke), "--without-quickstart")

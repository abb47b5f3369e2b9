"""Arguments and options that several commands share, and checks of them that do not need torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pointdistill.cli.console import echo
from pointdistill.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from pointdistill.engine.config.settings import RunOverrides

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "no", "bf16")
COMPILE = ("auto", "on", "off")
"""As in the engine; repeated here so that a wrong value is refused before torch loads, and compared by a test."""


class Size(StrEnum):
    """The engine's sizes, repeated here so that ``--help`` does not load torch; a test compares them."""

    TINY = "tiny"
    SMALL = "small"
    BASE = "base"
    LARGE = "large"


class ModeName(StrEnum):
    """The training modes, repeated here for the same reason."""

    DUAL = "dual"
    CLS = "cls"
    MPM = "mpm"


def _one_of(name: str, accepted: tuple[str, ...]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in accepted:
            msg = f"{name} must be one of {', '.join(accepted)}, got {value!r}"
            raise ConfigError(msg, settings=(name,))
        return value

    return check


CorpusArgument = Annotated[
    Path | None,
    typer.Argument(help="The corpus folder. Default: the last one made in this folder."),
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Run, encoder folder or file, owner/name on the Hub, or a name that `weights` lists. "
        "Default: the last run made here, or else the encoder that comes with the program.",
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(help="A complete run by name; `pointdistill recipes` lists them."),
]
SizeOption = Annotated[
    Size | None,
    typer.Option(
        help="Size of the model: the paper's small, base or large, or tiny for a CPU. Default: small."
    ),
]
ModeOption = Annotated[
    ModeName | None,
    typer.Option(
        help="Which objectives: both (dual), CLS alone, or masked patches alone (mpm). Default: dual."
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        help="A TOML file of settings to change, or a run's config.json with all of them."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting, as in masking.ratio=0.8; repeat for more.",
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(help="Corpus folder; by default the last one made in this folder."),
]
EpochsOption = Annotated[int | None, typer.Option(min=1, help="Passes over the corpus.")]
StepsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Optimiser steps of the whole run, in place of --epochs."),
]
BatchSizeOption = Annotated[
    int | None, typer.Option(min=1, help="Shapes per step, over all processes.")
]
DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu or cuda.", callback=_one_of("device", DEVICES))
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        help="auto (a resumed run: as before; a new one: bf16 on a GPU), no, or bf16.",
        callback=_one_of("precision", PRECISIONS),
    ),
]
CompileOption = Annotated[
    str,
    typer.Option(
        "--compile",
        help="Fuse the step's operations by torch.compile: auto (on a GPU), on, or off.",
        callback=_one_of("compile", COMPILE),
    ),
]
KeepOption = Annotated[int, typer.Option(min=1, help="How many of the newest checkpoints to keep.")]


def run_overrides(
    *,
    recipe: str | None,
    size: Size | None,
    mode: ModeName | None,
    config: Path | None,
    changes: list[str] | None,
    epochs: int | None,
    steps: int | None,
    batch_size: int | None,
    seed: int | None = None,
) -> RunOverrides:
    """The options of a run as the engine's record.

    Raises:
        ConfigError: if they contradict each other, or name a setting that does not exist.
        DataError: if the settings file cannot be read.
    """
    from pointdistill.engine.config.settings import RunOverrides, resolve_config

    overrides = RunOverrides(
        recipe=recipe,
        size=size.value if size else None,
        mode=mode.value if mode else None,
        config=config,
        set=tuple(changes or ()),
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
    )
    resolve_config(overrides)  # a wrong setting is refused here, before torch is loaded
    return overrides


def to_argv(overrides: RunOverrides) -> list[str]:
    """``overrides`` as options on a command line."""
    return [
        word for name, value in overrides.items() for word in (f"--{name.replace('_', '-')}", value)
    ]


def named_corpus(corpus: Path | None) -> Path:
    """The corpus that was named; without a name the last one made in this folder, which is printed on stderr.

    Raises:
        DataError: if none was named and none was made.
    """
    if corpus is not None:
        return corpus
    from pointdistill.data.files.workspace import last_corpus

    last = last_corpus()
    if last is None:
        msg = "no corpus was made in this folder yet; run `pointdistill prepare-data`, or name one"
        raise DataError(msg)
    echo(f"corpus: {last} (the last one made in this folder)", err=True)
    return last


def require_paths(paths: Iterable[Path | None], *settings: str) -> None:
    """Check that every path that is not None exists.

    Raises:
        DataError: naming the first that is missing.
    """
    # The engine checks this too, but only after the seconds that it takes to load torch.
    for path in paths:
        if path is not None and not path.exists():
            msg = f"{path}: no such file or folder; check its name"
            raise DataError(msg, settings=settings)


def require_encoder(encoder: Path | str | None, *settings: str, or_bundled: bool = True) -> None:
    """Check that there may be an encoder: a known name, something at its path, or a default if none is named.

    Args:
        encoder: a name or a path; ``owner/name`` on the Hub is left to the engine; None means the last run made
            here.
        settings: the command's name for it.
        or_bundled: whether None may also mean the encoder that comes with the program.

    Raises:
        CheckpointError: if there cannot be one; says what is accepted.
    """
    from pointdistill.engine.weights import bundled_is_here, is_name, suggestion

    if encoder is None:
        from pointdistill.data.files.workspace import last_run

        if last_run() is None and not (or_bundled and bundled_is_here()):
            msg = "no run was made in this folder yet; run `pointdistill pretrain`, or name an encoder"
            raise CheckpointError(msg, settings=settings)
        return
    if is_name(encoder):
        return
    path = Path(encoder)
    # If there is a folder `runs` here, `runs/mine` is a misspelled path and not a repository.
    may_be_repository = len(path.parts) == 2 and not path.is_absolute() and not path.parent.is_dir()
    if not path.exists() and not may_be_repository:
        msg = (
            f"{path}: no encoder here; {suggestion(path)}expected a run folder, what `pointdistill export` wrote, "
            "or a name that `pointdistill weights` lists"
        )
        raise CheckpointError(msg, settings=settings)

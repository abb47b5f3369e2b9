"""Arguments and options that several commands share, and checks of them that do not need torch."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pointdistill.cli.console import echo
from pointdistill.cli.help import did_you_mean
from pointdistill.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from pointdistill.engine.config.settings import RunOverrides

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "no", "bf16")
COMPILE = ("auto", "on", "off")
"""As in the engine; repeated here so that a wrong value is refused before torch loads, and compared by a test."""


GPUS = (
    "rtx3060",
    "rtx3090",
    "rtx4060ti",
    "rtx4070",
    "rtx4080",
    "rtx4090",
    "rtx5080",
    "rtx5090",
    "a10",
    "a40",
    "rtxa6000",
    "rtx6000ada",
    "l4",
    "l40s",
    "a100-40gb",
    "a100",
    "h100-pcie",
    "h100",
    "h200",
    "b200",
)
"""GPUs that a plan knows, for the Tab key, which must answer before torch loads; compared by a test."""

UP_AXES = ("z", "y", "x", "-z", "-y", "-x")
"""As in ``data.meshes``, for the same reason."""


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


def one_of(name: str, accepted: tuple[str, ...]) -> Callable[[str], str]:
    """A check of an option's value, which names the setting, what is accepted, and the nearest of it."""

    def check(value: str) -> str:
        if value not in accepted:
            near = did_you_mean(value, accepted)
            msg = f"{name} must be one of {', '.join(accepted)}, got {value!r}{near}"
            raise ConfigError(msg, settings=(name,))
        return value

    return check


def check_up(value: str | None) -> str | None:
    """The axis that --up names.

    Raises:
        ConfigError: if it is none.
    """
    if value is None:
        return None
    return one_of("up", UP_AXES)(value.lower())


_MOST_NAMES = 5000
"""Most names in a folder to compare a misspelled one with: an error must come at once."""

_MOST_RUNS = 200
"""Most folders to look at for the Tab key: it must answer at once, also beside a million files."""


def complete_recipe(incomplete: str) -> list[str]:
    """Names of recipes that begin with ``incomplete``, for the Tab key."""
    from pointdistill.engine.config.recipes import RECIPES

    return [name for name in RECIPES if name.startswith(incomplete)]


def complete_source(incomplete: str) -> list[str]:
    """What a corpus can be made of."""
    from pointdistill.data.sources import SOURCES

    names = (*(info.name for info in SOURCES), "mixture", "psb")
    return [name for name in names if name.startswith(incomplete)]


def complete_weights(incomplete: str) -> list[str]:
    """Names of encoders."""
    from pointdistill.engine.weights import BUNDLED, PUBLISHED

    return [name for name in (*PUBLISHED, BUNDLED) if name.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Folders of runs: the last one made here, those under runs/, and those below what was typed."""
    from pointdistill.data.files.workspace import last_run

    return _folders_that_begin(incomplete, last_run(), Path("runs"), "config.json")


def _folders_that_begin(incomplete: str, last: Path | None, usual: Path, holds: str) -> list[str]:
    """Folders with a file of a name: the last one made, those in the usual place, those below what was typed."""
    parent = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    folders = [*([last] if last else []), *_subfolders(usual), *_subfolders(parent)]
    found = [str(folder) for folder in folders if (folder / holds).is_file()]
    return [name for name in dict.fromkeys(found) if name.startswith(incomplete)]


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(
            itertools.islice((one for one in folder.iterdir() if one.is_dir()), _MOST_RUNS)
        )
    except OSError:
        return []


def complete_encoder(incomplete: str) -> list[str]:
    """Runs and names of encoders."""
    return [*complete_run(incomplete), *complete_weights(incomplete)]


def complete_corpus(incomplete: str) -> list[str]:
    """Folders of corpora: the last one made here, those under data/, and those below what was typed."""
    from pointdistill.data.files.workspace import last_corpus

    return _folders_that_begin(incomplete, last_corpus(), Path("data"), "corpus.json")


def complete_one_of(*accepted: str) -> Callable[[str], list[str]]:
    """A function that completes one of ``accepted``."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in accepted if name.startswith(incomplete)]

    return complete


complete_gpu = complete_one_of(*GPUS)
"""Names of GPUs."""

CorpusArgument = Annotated[
    Path | None,
    typer.Argument(
        help="The corpus folder. Default: the last one made in this folder.",
        autocompletion=complete_corpus,
    ),
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        metavar="ENCODER",
        autocompletion=complete_encoder,
        help="Run, encoder folder or file, owner/name on the Hub, or a name that `weights` lists. "
        "Default: the last run made here, or else the encoder that comes with the program.",
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        help="A complete run by name; `pointdistill recipes` lists them.",
        autocompletion=complete_recipe,
    ),
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
    typer.Option(
        help="Corpus folder; by default the last one made in this folder.",
        autocompletion=complete_corpus,
    ),
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
    str,
    typer.Option(
        help="auto, cpu or cuda.",
        callback=one_of("device", DEVICES),
        autocompletion=complete_one_of(*DEVICES),
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        help="auto (a resumed run: as before; a new one: bf16 on a GPU), no, or bf16.",
        callback=one_of("precision", PRECISIONS),
        autocompletion=complete_one_of(*PRECISIONS),
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document instead; messages go to stderr."),
]
CompileOption = Annotated[
    str,
    typer.Option(
        "--compile",
        help="Fuse the step's operations by torch.compile: auto (on one GPU), on, or off.",
        callback=one_of("compile", COMPILE),
        autocompletion=complete_one_of(*COMPILE),
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
            msg = f"{path}: no such file or folder; check its name{did_you_mean_path(path)}"
            raise DataError(msg, settings=settings)


def did_you_mean_path(path: Path) -> str:
    """``; did you mean 'models/cars'?`` if a path that does not exist is nearly one that does, else nothing.

    Its last name may be misspelled, or the folder before it.
    """
    parent = path.parent
    if parent.is_dir():
        places = [parent / name for name in _near_names(parent, path.name)]
    else:
        folders = _near_names(parent.parent, parent.name) if parent.parent.is_dir() else []
        places = [parent.with_name(name) / path.name for name in folders]
    found = next((place for place in places if place.exists()), None)
    return "" if found is None else f"; did you mean {str(found)!r}?"


def _near_names(folder: Path, name: str) -> list[str]:
    try:
        names = [entry.name for entry in itertools.islice(folder.iterdir(), _MOST_NAMES)]
    except OSError:
        return []
    return difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.75)


def require_benchmark(
    name: str,
    *,
    splits: Iterable[str] = (),
    data: Path | None = None,
    corpus: Path | None = None,
    stand_in: bool = False,
) -> None:
    """Check that a benchmark has these splits, and that its archive is there unless a stand-in is to be used.

    Raises:
        ConfigError: for an unknown split, or a stand-in and data together.
        DataError: if the archive is absent; says where to get it.
    """
    from pointdistill.data.benchmarks.registry import (
        check_data_choice,
        choose_splits,
        find_benchmark,
    )

    choose_splits(name, tuple(splits))
    check_data_choice(stand_in=stand_in, data=data, corpus=corpus)
    if not stand_in:
        find_benchmark(name, data=data, corpus=corpus)


def require_own_folder(data: Path | None) -> None:
    """Check that a folder of one's own shapes was named and exists.

    Raises:
        ConfigError: if none was named.
        DataError: if it is absent.
    """
    if data is None:
        msg = "--data is missing: a folder with one sub-folder of meshes or clouds per class"
        raise ConfigError(msg)
    require_paths([data], "data")


def require_encoder(encoder: Path | str | None, *settings: str) -> None:
    """Check that there may be an encoder: a known name, something at its path, or a default if none is named.

    Args:
        encoder: a name or a path; ``owner/name`` on the Hub is left to the engine; None means the last run made
            here or the encoder that comes with the program.
        settings: the command's name for it.

    Raises:
        CheckpointError: if there cannot be one; says what is accepted.
    """
    from pointdistill.engine.weights import bundled_is_here, is_name, suggestion

    if encoder is None:
        from pointdistill.data.files.workspace import last_run, why_no_run

        if last_run() is None and not bundled_is_here():
            msg = f"{why_no_run()}; run `pointdistill pretrain`, or name an encoder"
            raise CheckpointError(msg, settings=settings)
        return
    if is_name(encoder):
        return
    path = Path(encoder)
    if not path.exists() and not may_be_repository(path):
        msg = (
            f"{path}: no encoder here; {suggestion(path)}expected a run folder, what `pointdistill export` wrote, "
            "or a name that `pointdistill weights` lists"
        )
        raise CheckpointError(msg, settings=settings)


def may_be_repository(path: Path) -> bool:
    """Whether a path that does not exist may be ``owner/name`` on the Hub."""
    # If there is a folder `runs` here, `runs/mine` is a misspelled path and not a repository.
    return len(path.parts) == 2 and not path.is_absolute() and not path.parent.is_dir()

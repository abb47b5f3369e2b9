"""The command line: parses arguments, calls one function, prints, and sets the exit code.

Modules of this package import the engine inside the commands, so that ``--help`` does not load torch.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer

from pointdistill.cli.about import doctor, quickstart, show_version
from pointdistill.cli.console import (
    name_options,
    print_error,
    say_duration,
    set_quiet,
    warnings_as_lines,
)
from pointdistill.cli.corpus import duplicates, inspect, leaks, preview, verify
from pointdistill.cli.corpus_tools import corpus_app, export_corpus, merge, split, subset
from pointdistill.cli.embed import embed, search
from pointdistill.cli.evaluate import evaluate, reconstruct, report
from pointdistill.cli.finetune import finetune, predict
from pointdistill.cli.help import (
    PROGRAM,
    CommandHelp,
    Entry,
    ProgramHelp,
    usage_message,
    with_quiet,
)
from pointdistill.cli.plan import plan, recipes
from pointdistill.cli.prepare_data import prepare_data
from pointdistill.cli.pretrain import pretrain
from pointdistill.cli.sample import sample
from pointdistill.cli.weights import export, import_weights, push, weights
from pointdistill.errors import PointDistillError

app = typer.Typer(
    name=PROGRAM,
    cls=ProgramHelp,
    help="Self-supervised representations of 3-D shapes, from meshes and point clouds, with no labels.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help is drawn by cli.help; errors are one line
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(show_version)

COMMANDS: dict[str, tuple[Entry, ...]] = {
    "Start here": (
        Entry(quickstart, "See it work in minutes on this machine.", "quickstart"),
        Entry(doctor, "Print versions, devices, and problems.", "doctor"),
    ),
    "Data: make a corpus, look at it": (
        Entry(
            prepare_data,
            "Make a corpus to pretrain on.",
            "prepare-data folder --input meshes/ --output data/own --up y",
        ),
        Entry(sample, "Sample surface points from meshes.", "sample chair.stl --output chair.ply"),
        Entry(inspect, "Summarise a corpus.", "inspect data/own"),
        Entry(verify, "Check a corpus for damage.", "verify data/own"),
        Entry(
            duplicates,
            "Find shapes that a folder holds twice.",
            "duplicates meshes/ --output duplicates.csv",
        ),
        Entry(
            leaks,
            "Find test shapes in a corpus.",
            "leaks scanobjectnn --corpus data/own",
        ),
        Entry(corpus_app, "Merge, divide or export corpora.", "corpus split data/own -o parts"),
    ),
    "Train": (
        Entry(recipes, "List the named recipes.", "recipes tiny"),
        Entry(plan, "Estimate what a run costs here.", "plan --size tiny --data data/own"),
        Entry(
            pretrain,
            "Pretrain an encoder without labels.",
            "pretrain --size tiny --data data/own --run runs/own",
        ),
        Entry(
            finetune,
            "Train a classifier or a segmenter.",
            "finetune --data meshes/ --encoder runs/own --output models/own",
        ),
    ),
    "Measure": (
        Entry(
            evaluate,
            "Evaluate an encoder on a benchmark.",
            "evaluate folder --data meshes/ --encoder runs/own",
        ),
        Entry(
            reconstruct,
            "Reconstruct patches from features.",
            "reconstruct --encoder runs/own --data data/own",
        ),
    ),
    "Use": (
        Entry(
            embed,
            "Compute features of any shapes.",
            "embed meshes/ --output meshes.npz --encoder runs/own",
        ),
        Entry(search, "Find the shapes nearest to a file.", "search chair.stl meshes.npz"),
        Entry(predict, "Classify shapes, or label their parts.", "predict models/own chair.stl"),
    ),
    "Look": (
        Entry(preview, "Show shapes of a corpus.", "preview data/own --shapes 12"),
        Entry(report, "Show runs on a page.", "report runs/own"),
    ),
    "Share": (
        Entry(weights, "List the encoders known by name.", "weights"),
        Entry(
            export,
            "Write an encoder as safetensors or ONNX.",
            "export my-encoder --encoder runs/own",
        ),
        Entry(
            push,
            "Share weights on the Hugging Face Hub.",
            "push runs/own jane/shapes --card-only card",
        ),
        Entry(
            import_weights,
            "Convert a published checkpoint.",
            "import-weights asymdsd.ckpt --output asymdsd",
        ),
    ),
}
"""Every command, by what one wants to do; in it, a group of commands is one entry."""

CORPUS_COMMANDS = (
    Entry(merge, "Join corpora to one.", "corpus merge data/own data/other -o data/both"),
    Entry(
        subset, "Make a corpus of some shapes.", "corpus subset data/own -o data/few --shapes 100"
    ),
    Entry(split, "Divide a corpus into parts.", "corpus split data/own -o parts"),
    Entry(
        export_corpus,
        "Write a corpus for other programs.",
        "corpus export data/own -o exported --format ply",
    ),
)

functions: dict[str, Callable[..., None]] = {}
"""The function behind each command, by name; one of a group has the group's name before its own."""


def _add(to: typer.Typer, entry: Entry, *, group: str = "") -> str:
    """Make a command of an entry; returns its name."""
    assert not isinstance(entry.function, typer.Typer)
    command = with_quiet(entry.function)
    name = entry.example.removeprefix(group).split()[0]
    functions[group + name] = command
    to.command(
        name, cls=CommandHelp, short_help=entry.summary, epilog=f"{PROGRAM} {entry.example}"
    )(command)
    return name


for title, entries in COMMANDS.items():
    ProgramHelp.groups[title] = {}
    for entry in entries:
        if isinstance(entry.function, typer.Typer):
            app.add_typer(entry.function, name="corpus", short_help=entry.summary)
            ProgramHelp.groups[title]["corpus"] = entry.summary
        else:
            ProgramHelp.groups[title][_add(app, entry)] = entry.summary
for entry in CORPUS_COMMANDS:
    _add(corpus_app, entry, group="corpus ")
ProgramHelp.options = [
    ("--version", "Print the version."),
    ("--install-completion", "Let the Tab key complete commands and names."),
    ("--show-completion", "Print what that installs."),
]
ProgramHelp.first_steps = [
    f"{PROGRAM} quickstart",
    f"{PROGRAM} embed YOUR_FILES",
    f"{PROGRAM} search ONE_OF_THEM",
]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the program; exit codes: 0 done, 2 wrong input, 130 interrupted, 1 anything else."""
    command = typer.main.get_command(app)
    argv = list(sys.argv[1:] if arguments is None else arguments)
    began = time.monotonic()
    set_quiet(False)
    try:
        Path.cwd()
    except FileNotFoundError:
        # The libraries of torch end the program themselves, in words that say nothing of it.
        print_error("error: the current folder was removed; change into one that exists")
        sys.exit(2)
    try:
        with warnings_as_lines(), stopped_in_order():
            code = command(args=argv or ["--help"], prog_name=PROGRAM, standalone_mode=False)
    except PointDistillError as error:
        print_error(f"error: {name_options(str(error), _options_of(command, argv, error))}")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print_error("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        # A file where a folder should be, no permission, a full disk: something only the user can fix.
        where = f"{error.filename}: " if error.filename else ""
        print_error(f"error: {where}{error.strerror or error}; give another path, or free it")
        sys.exit(2)
    except MemoryError:
        print_error(
            "error: not enough memory for this; ask for fewer points, shapes or a smaller batch"
        )
        sys.exit(2)
    except typer.Exit as stop:
        _say_duration(began)
        sys.exit(stop.exit_code)
    except Exception as error:
        # Usage errors have a class of the parser's; which package defines it depends on typer's version.
        if not hasattr(error, "format_message"):
            raise
        print_error(f"error: {usage_message(error, argv, functions)}")
        sys.exit(2)
    _say_duration(began)
    sys.exit(code if isinstance(code, int) else 0)


def _say_duration(began: float) -> None:
    """The last line of long work: how long it took; of several processes the first one says it."""
    if os.environ.get("RANK", "0") == "0":
        say_duration(time.monotonic() - began)


@contextmanager
def stopped_in_order() -> Iterator[None]:
    """Let SIGTERM and a closed terminal stop the block as Ctrl-C does, so that no temporary files are left.

    A signal that is ignored already, as under nohup, stays ignored; a training has handlers of its own.
    """
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [number for number in signals if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _options_of(command: Any, argv: Sequence[str], error: PointDistillError) -> tuple[str, ...]:
    """Settings of an error for which the command that was typed has an option; it may take them otherwise."""
    typed = command
    for word in argv:
        typed = getattr(typed, "commands", {}).get(word, typed)
    options = {option for item in getattr(typed, "params", ()) for option in item.opts}
    return tuple(name for name in error.settings if f"--{name.replace('_', '-')}" in options)

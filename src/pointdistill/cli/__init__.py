"""The command line: parses arguments, calls one function, prints, and sets the exit code.

Modules of this package import the engine inside the commands, so that ``--help`` does not load torch.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import typer

from pointdistill.cli.about import doctor, quickstart, recipes, show_version
from pointdistill.cli.console import name_options, print_error, warnings_as_lines
from pointdistill.cli.corpus import duplicates, inspect, leaks, preview, verify
from pointdistill.cli.embed import embed, search
from pointdistill.cli.evaluate import evaluate
from pointdistill.cli.finetune import finetune, predict
from pointdistill.cli.prepare_data import prepare_data
from pointdistill.cli.pretrain import plan, pretrain
from pointdistill.cli.reconstruct import reconstruct, report
from pointdistill.cli.sample import sample
from pointdistill.cli.weights import export, import_weights, push, weights
from pointdistill.errors import PointDistillError

app = typer.Typer(
    name="pointdistill",
    help="Self-supervised representations of 3-D shapes, from meshes and point clouds, with no labels.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help, since drawing it with rich takes twice as long
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(show_version)
for command, summary in (
    (quickstart, "See it work in minutes on this machine."),
    (prepare_data, "Make a corpus to pretrain on."),
    (inspect, "Summarise a corpus."),
    (verify, "Check a corpus for damage."),
    (preview, "Show shapes of a corpus."),
    (recipes, "List the named recipes."),
    (plan, "Estimate what a run costs here."),
    (pretrain, "Pretrain an encoder without labels."),
    (evaluate, "Evaluate an encoder on a benchmark."),
    (report, "Show runs on a page."),
    (leaks, "Find test shapes in a corpus."),
    (finetune, "Train a classifier or a segmenter."),
    (predict, "Classify shapes, or label their parts."),
    (embed, "Compute features of any shapes."),
    (search, "Find the shapes nearest to a file."),
    (duplicates, "Find shapes that a folder holds twice."),
    (sample, "Sample surface points from meshes."),
    (reconstruct, "Reconstruct patches from features."),
    (weights, "List the encoders known by name."),
    (export, "Write an encoder as safetensors or ONNX."),
    (push, "Share weights on the Hugging Face Hub."),
    (import_weights, "Convert a published checkpoint."),
    (doctor, "Print versions, devices, and problems."),
):
    app.command(short_help=summary)(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the program; exit codes: 0 done, 2 wrong input, 130 interrupted, 1 anything else."""
    command = typer.main.get_command(app)
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings_as_lines(), stopped_in_order():
            code = command(args=argv or ["--help"], standalone_mode=False)
    except PointDistillError as error:
        print_error(f"error: {name_options(str(error), error.settings)}")
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
        sys.exit(stop.exit_code)
    except Exception as error:
        # Usage errors have a class of the parser's; which package defines it depends on typer's version.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        print_error(f"error: {message()}; see `{_path(error)} --help`")
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


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


def _path(error: Exception) -> str:
    """The command that a usage error belongs to, as it was typed."""
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "pointdistill"

"""Runs every command line of README, of docs/ and of the commands' own help, and lists how each ended.

Run: python -m tests.documented_lines [--page NAME] [--output FILE] [--list] [--world FOLDER]

Lines run as written, in a folder with tiny data (`documented_world`). What is changed before they run is in
one table, `SMALLER`: options that make a long command short, and names that stand for something of the reader's.
What is not run is in another, `NOT_RUN`, each with its reason; an entry that no line needs any more is an error.
Blocks of Python run too, after those before them on the page. The authors' weights come from a Hub on this
machine, which serves a golden checkpoint under their names and takes uploads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer

from pointdistill.cli import app
from pointdistill.engine.finetuning.request import TRAINING
from pointdistill.engine.weights import CONFIG, PUBLISHED
from tests.documented_world import ROOT, begin, build, provide
from tests.engine.local_hub import local_hub
from tests.warm import Warm, warm_process

SECONDS = 600
"""Longest time for one line; on two free cores the longest takes one minute."""

NOT_RUN: tuple[tuple[str, str], ...] = (
    (
        r"^pip install|^python -m venv|^source ",
        "installs; `nox -s dist` does so from a wheel and from an sdist",
    ),
    (r"^pytest\b", "is the test suite itself"),
    (
        r"^nox\b",
        "a session of nox; CI runs tests, docs, notebooks and this one, a release the others",
    ),
    (
        r"^python benchmarks/",
        "a measurement of minutes to hours, whose figures are in docs/results.md",
    ),
    (
        r"^python docs/make_pictures",
        "draws the pictures of the site: minutes, and they are committed",
    ),
    (r"--fetch\b", "downloads from other people's servers"),
    (r"^accelerate launch --multi_gpu$", "the beginning of a line that stands above it and is run"),
    (
        r"^#!/bin/bash",
        "a Slurm script: needs its srun; its other lines are those of the block above it",
    ),
    (r"evaluate BENCHMARK .*--stand-in", "evaluates on a stand-in of thousands of scans: minutes"),
)
"""Lines that are not run, as regular expressions, with the reason. The first that fits counts."""

SMALLER: tuple[tuple[str, str, str], ...] = (
    # Names that stand for something of the reader's.
    (r"\bYOUR_FILES\b", "my-meshes", ""),
    (r"\bONE_OF_THEM\b", "chair.obj", ""),
    (r"\bENCODER\b", "runs/tiny-dual-1", ""),
    (r"\bCORPUS\b", "data/builtin", ""),
    (r"recipes NAME\b", "recipes tiny", ""),
    (r"evaluate BENCHMARK$", "evaluate scanobjectnn --protocol knn", ""),
    (r"tcp://HOST:8786", "tcp://127.0.0.1:8786", ""),
    (r"/shared/archives", "downloads", ""),
    (r"/shared/corpus", "data/on-a-cluster", ""),
    (r"/shared/objaverse", "data/objaverse", ""),
    (r"finetune --resume --output models/\S+", "finetune --resume --output models/interrupted", ""),
    # Launchers: two processes on the CPU.
    (r"--nproc[-_]per[-_]node \d+", "--nproc-per-node 2", ""),
    (
        r"--num_processes \d+",
        "--num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no",
        "",
    ),
    (r"^dask scheduler\b", "dask scheduler --host 127.0.0.1", ""),
    # Small data and short trainings.
    (
        r"\bpretrain\b(?=.* (small|base))(?!.*--resume)",
        "",
        " --batch-size 2 --set encoder.depth=1 --set predictor.depth=1",
    ),
    (r"\bpretrain\b(?!.*--(steps|resume))", "", " --steps 2"),
    (r"--steps \d+", "--steps 2", ""),
    (r"\bpretrain\b(?!.*--(resume|batch-size|config))", "", " --batch-size 4"),
    (r"\bpretrain --config\b", "", " --batch-size 4"),
    (r"\b(pretrain|evaluate|finetune|reconstruct)\b(?!.*--device)", "", " --device cpu"),
    (r"\breconstruct\b(?!.*--steps)", "", " --steps 2"),
    (r"^pointdistill plan\b(?!.*--(no-measure|size tiny|recipe tiny))", "", " --no-measure"),
    (r"\b(evaluate|finetune)\b(?!.*--(epochs|resume))", "", " --epochs 1"),
    (r"--epochs \d+", "--epochs 1", ""),
    (r"--encoder runs/(small-shapenet|base-mixture)", "--encoder runs/tiny-dual-1", ""),
    (r"\bevaluate\b(?!.*--encoder)", "", " --encoder runs/tiny-dual-1"),
    (r"\bevaluate\b(?!.*--seeds)", "", " --seeds 1 --augmented-copies 1"),
    (r"\bprepare-data\b(?!.*--(points|plan))", "", " --points 256"),
    (r"\bprepare-data\b(?!.*--(workers|plan|cluster))", "", " --workers 0"),
    (r"\bprepare-data builtin\b(?!.*--shapes)", "", " --shapes 54"),
    (r"(corpus subset .*--shapes) \d+", r"\1 4", ""),
    (r"--probe builtin\b", "--probe data/builtin", ""),
    (r"(prepare-data builtin.*--shapes) \d{3,}", r"\1 54", ""),
    (r"\bquickstart$", "", " --shapes 64 --steps 2"),
)
"""What is replaced in a line, by what, and what is put at its end."""

WITHOUT_WORKERS = re.compile(r"--(deadline|memory) ")
"""Limits need worker processes."""

SERVERS = re.compile(r"^dask (scheduler|worker)\b")
"""Programs that run until they are stopped: started, and stopped at the end of the page."""

FRAGMENTS = ("SourceInfo(", '"""Bricks:')
"""How blocks of Python begin that are part of a file and no script."""

WRITTEN = re.compile(r"^(-o|--output|--run|--run-folder|--folder|--sheet|--card-only)$")


@dataclass(frozen=True)
class Line:
    """A command line, or a block of Python, and where it stands."""

    page: str
    number: int
    text: str
    python: bool = False

    @property
    def reason(self) -> str:
        """Why it is not run; empty if it is."""
        if self.python and self.text.startswith(FRAGMENTS):
            return "part of a file"
        found = [reason for pattern, reason in NOT_RUN if re.search(pattern, self.text)]
        return found[0] if found else ""

    @property
    def as_run(self) -> str:
        """With the replacements of `SMALLER`."""
        text = self.text
        for pattern, replacement, end in SMALLER:
            if re.search(pattern, text):
                if end == " --workers 0" and WITHOUT_WORKERS.search(text):
                    continue
                text = text + end if end else re.sub(pattern, replacement, text)
        return text


@dataclass(frozen=True)
class Outcome:
    """How a line ended."""

    line: Line
    code: int
    seconds: float
    said: str = ""


def lines() -> list[Line]:
    """All of them: pages in order, then the help of every command."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [line for page in pages for line in lines_of(page)] + list(lines_of_help())


def lines_of(page: Path) -> Iterator[Line]:
    """Lines of console blocks, scripts, blocks of Python, and commands quoted in the text, each once a page."""
    text = page.read_text(encoding="utf-8")
    seen: set[str] = set()
    for found in re.finditer(
        r"```(\w*)\n(.*?)```|(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)", text, re.DOTALL
    ):
        number = text.count("\n", 0, found.start()) + 1
        language, block, quoted = found[1], found[2], found[3]
        if quoted is not None:
            words = " ".join(quoted.split())
            whole = re.match(
                r"(pointdistill [a-z-]+|torchrun|accelerate launch|python|nox|pip install) \S",
                words,
            )
            # With an ellipsis or brackets it is the form of a command, not a command.
            commands = [words] if whole and not re.search(r"[…\[]|\.\.\.", words) else []
        elif language == "console":
            number += 1
            commands = []
            for row in block.replace("\\\n", " ").splitlines():
                command = re.sub(r"\s+#.*|^#.*", "", row).strip()
                commands += [part.strip() for part in command.split(" && ")] if command else []
        elif language in ("bash", "python"):
            commands = [block.strip()]
        else:
            commands = []
        for command in commands:
            if command not in seen:
                seen.add(command)
                yield Line(page.name, number, command, python=language == "python")


def lines_of_help() -> Iterator[Line]:
    """The worked examples that the commands' help shows: every line of it that begins with the program's name."""
    for name, command in commands():
        wide = {"max_content_width": 400, "terminal_width": 400}
        context = command.make_context(name, [], resilient_parsing=True, **wide)
        for number, row in enumerate(command.get_help(context).splitlines(), 1):
            if re.match(r"\s+(\$ )?pointdistill [a-z]", row):
                yield Line(f"{name} --help", number, row.strip().removeprefix("$ "))


def commands() -> Iterator[tuple[str, Any]]:
    """All commands by name; those of a group as `corpus merge`."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        group = getattr(command, "commands", {})
        yield from ((f"{name} {one}", group[one]) for one in group)
        if not group:
            yield name, command


def stale_entries(found: Sequence[Line]) -> list[str]:
    """Reasons that no line needs."""
    texts = [line.text for line in found]
    patterns = [pattern for pattern, _ in NOT_RUN]
    return [one for one in patterns if not any(re.search(one, text) for text in texts)]


class Blocks:
    """A page's blocks of Python, one after the other in one process, as a reader would type them."""

    LOOP = """
import json, sys, traceback
names = {"__name__": "__main__"}
for row in sys.stdin:
    try:
        exec(compile(json.loads(row), "block", "exec"), names)
        print("\\0" + "passed", flush=True)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        print("\\0" + "failed", flush=True)
"""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.LOOP],
            cwd=folder,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, text: str) -> tuple[int, str]:
        """0 or 1, and what it printed; a process that ended or took too long fails every later block too."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        alarm = threading.Timer(SECONDS, self._process.kill)
        alarm.start()
        said: list[str] = []
        try:
            self._process.stdin.write(json.dumps(text) + "\n")
            self._process.stdin.flush()
            for row in self._process.stdout:
                if row.startswith("\0"):
                    return int(row != "\0passed\n"), "".join(said)
                said.append(row)
        except BrokenPipeError:
            pass
        finally:
            alarm.cancel()
        return 1, "".join([*said, "the process of the page's blocks has ended"])

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


class Page:
    """One page's folder, in which its lines run one after the other."""

    ports = threading.Lock()
    """Held by the page whose servers run: they listen where dask's do unless told otherwise."""

    def __init__(self, world: Path, folder: Path, warm: Warm, hub: str) -> None:
        self.world, self.folder, self.warm = world, folder, warm
        self.environment = {
            "HF_ENDPOINT": hub,
            "HF_TOKEN": "hf_of_jane",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "POINTDISTILL_CACHE": str(folder.parent / "cache"),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "agg",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        self.servers: list[subprocess.Popen[str]] = []
        self.blocks: Blocks | None = None
        self.made: set[str] = set()
        begin(world, folder)

    def run(self, line: Line) -> Outcome:
        began = time.monotonic()
        code, said = self._python(line) if line.python else self._command(line.as_run)
        return Outcome(line, code, time.monotonic() - began, said)

    def stop(self) -> None:
        for server in reversed(self.servers):
            server.terminate()
            try:
                server.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        if self.servers:
            self.ports.release()
        if self.blocks:
            self.blocks.stop()

    def _python(self, line: Line) -> tuple[int, str]:
        for name in re.findall(r'"([^"\s]+)"', line.text):
            self._provide(name)
        self.blocks = self.blocks or Blocks(self.folder, self.environment)
        return self.blocks.run(line.text)

    def _command(self, text: str) -> tuple[int, str]:
        self._prepare(shlex.split(text, comments=True))
        if SERVERS.search(text):
            if not self.servers:
                self.ports.acquire()
            server = subprocess.Popen(
                shlex.split(text),
                cwd=self.folder,
                env=os.environ | self.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self.servers.append(server)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return server.wait(5), "ended at once"
            return 0, "started"
        if text.startswith("pointdistill ") and not re.search(r"[*<>|$&]", text):
            words = shlex.split(text)[1:]
            started = self.warm.start("pointdistill", *words, cwd=self.folder, env=self.environment)
            alarm = threading.Timer(SECONDS, started.send_signal, (signal.SIGKILL,))
            alarm.start()
            done = started.wait()
            alarm.cancel()
            return done.returncode, done.stdout + done.stderr
        return self._shell(text)

    def _shell(self, text: str) -> tuple[int, str]:
        try:
            done = subprocess.run(
                ["bash", "-c", text],
                check=False,
                cwd=self.folder,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return 124, f"no end in {SECONDS} seconds"
        return done.returncode, done.stdout + done.stderr

    def _prepare(self, words: Sequence[str]) -> None:
        """Bring what the line reads; remove what it will write, if it was there from the beginning."""
        written = {after for word, after in pairwise(words) if WRITTEN.match(word)}
        if words[1:2] == ["quickstart"]:
            self._provide("quickstart")
        if "export" in words[:2]:
            written.add(words[2])
        if words[1:2] == ["prepare-data"] and not any(word in words for word in ("-o", "--output")):
            source = words[2] if len(words) > 2 and not words[2].startswith("-") else "builtin"
            named = [Path(after).name for word, after in pairwise(words) if word == "--input"]
            written.add(f"data/{named[0] if named else source}")
        continues = "--resume" in words or "evaluate" in words or "--retry" in words
        for name in written:
            if continues:
                self._provide(name)
            elif name not in self.made and (self.folder / name).is_dir():
                shutil.rmtree(self.folder / name)
            self.made.add(name)
        for word in words[2:]:
            for name in (word, word.partition("/")[0] if "*" in word else word):
                if name not in written:
                    self._provide(name)

    def _provide(self, name: str) -> None:
        provide(self.world, self.folder, name.rstrip("/"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all, print and write the list; 1 if a line failed or a table has an entry too many."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("build/documented-lines.txt"))
    parser.add_argument(
        "--page", action="append", help="only this page, such as README.md; again for more"
    )
    parser.add_argument("--list", action="store_true", help="say what would run, and run nothing")
    parser.add_argument("--world", type=Path, help="make the tiny data here, or use what is here")
    parser.add_argument(
        "--processes", type=int, default=min(os.cpu_count() or 1, 4), help="pages at a time"
    )
    given = parser.parse_args(arguments)
    found = [line for line in lines() if not given.page or line.page in given.page]
    stale = [] if given.page else stale_entries(found)
    for pattern in stale:
        print(f"no line needs this entry any more: {pattern}")
    if given.list:
        for line in found:
            print(f"{line.page}:{line.number}\t{line.reason or 'run'}\t{line.as_run}")
        return int(bool(stale))
    began = time.monotonic()
    outcomes = run_all(found, given.world, given.processes)
    computed = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) / 60
    rows = [row(one) for one in outcomes] + [
        f"   -  {line.page}:{line.number}  {brief(line.text)}   (not run: {line.reason})"
        for line in found
        if line.reason
    ]
    failed = [one for one in outcomes if one.code != 0]
    summary = (
        f"{len(outcomes)} lines run, {len(failed)} failed, {len(found) - len(outcomes)} not run,"
        f" in {(time.monotonic() - began) / 60:.1f} minutes, {computed:.1f} of a core"
    )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text("\n".join([*rows, summary, ""]), encoding="utf-8")
    for one in failed:
        # A launcher's own report buries what the program said.
        errors = [said for said in one.said.splitlines() if said.startswith("error:")]
        print("\n".join(["", row(one), *errors, one.said[-2000:]]))
    print(f"{summary}; the list is {given.output}")
    return int(bool(failed or stale))


def run_all(found: Sequence[Line], kept: Path | None, processes: int) -> list[Outcome]:
    """The outcomes in the order of the lines, printed as they come, several pages at a time.

    Args:
        found: the lines, page by page.
        kept: where the tiny data lie or shall lie; without it they are removed in the end.
        processes: pages at a time.
    """
    content = (ROOT / "tests" / "golden" / "official_tiny.ckpt").read_bytes()
    done: list[list[Outcome]] = []
    with contextlib.ExitStack() as stack:
        # A helper process that is slow to end loses no outcome.
        stack.enter_context(contextlib.suppress(subprocess.TimeoutExpired))
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hub = stack.enter_context(local_hub({one.file: content for one in PUBLISHED.values()}))
        helpers: queue.SimpleQueue[Warm] = queue.SimpleQueue()
        for _ in range(processes):
            helpers.put(stack.enter_context(warm_process(temporary)))
        world = kept.absolute() if kept else temporary / "world"
        if not world.exists():
            warm = helpers.get()
            build(
                world,
                lambda *words: _type(warm, world, words),
                lambda *words: _interrupt(warm, world, words),
            )
            helpers.put(warm)

        def run_page(page: str) -> list[Outcome]:
            warm = helpers.get()
            place = Page(world, temporary / page.replace(" ", ""), warm, hub.address)
            outcomes: list[Outcome] = []
            try:
                for line in found:
                    if line.page == page and not line.reason:
                        outcomes.append(place.run(line))
                        print(row(outcomes[-1]), flush=True)
            finally:
                place.stop()
                helpers.put(warm)
            shutil.rmtree(place.folder)
            return outcomes

        with ThreadPoolExecutor(processes) as pool:
            pages = dict.fromkeys(line.page for line in found)
            done.extend(pool.map(run_page, pages))
    return [one for outcomes in done for one in outcomes]


def _type(warm: Warm, folder: Path, words: Sequence[str]) -> None:
    done = warm.run("pointdistill", *words, cwd=folder, env={"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(" ".join(words) + "\n" + done.stderr)


def _interrupt(warm: Warm, folder: Path, words: Sequence[str]) -> None:
    """Ctrl-C as soon as a training has written its first state."""
    began = time.monotonic()
    started = warm.start("pointdistill", *words, cwd=folder, env={"OMP_NUM_THREADS": "1"})
    files = [folder / words[-1] / name for name in (TRAINING, CONFIG)]
    while not all(file.is_file() for file in files) and time.monotonic() < began + SECONDS:
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    if (code := started.wait().returncode) != 130:
        raise RuntimeError(f"{' '.join(words)}: ended with {code}, not interrupted")


def row(one: Outcome) -> str:
    """A line of the list: exit code, place, line, what was run in its place, seconds."""
    text, run = brief(one.line.text), brief(one.line.as_run)
    changed = f"   (as: {run})" if run != text and not one.line.python else ""
    return (
        f"{one.code:4d}  {one.line.page}:{one.line.number}  {text}{changed}   {one.seconds:.1f} s"
    )


def brief(text: str) -> str:
    """The first line."""
    first, _, rest = text.partition("\n")
    return first + (" …" if rest else "")


if __name__ == "__main__":
    sys.exit(main())

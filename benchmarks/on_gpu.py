"""Everything to learn from a GPU in one call of eight minutes: correctness first, then timings.

Each part is a process of its own with a time limit of its own, so that one that fails or hangs costs nothing but
itself. Parts whose figures are timings run alone, the others beside each other. Results are written as they come:

- ``results.json``: what every part found, or its error, and how it ended; rewritten after each part;
- ``log.txt``: everything that the parts printed;
- ``profile-views.txt``, ``profile-step.txt``: tables of the profiler.

The parts are in ``on_gpu_parts.py`` and ``on_gpu_timing.py``. On a CPU (``--device cpu``) everything that does not
need a GPU runs too, at the smallest sizes, one part after the other.

Run: ``python benchmarks/on_gpu.py --output FOLDER [--parts machine stages] [--seconds 470] [--device cpu]``
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent

SPARE_SECONDS = 5.0
"""Time kept at the end for writing results."""

LEAST_SECONDS = 15.0
"""A part is not started with less time than this."""


SHOWN = 400
"""Characters of a part's results that are printed when it ends."""


@dataclass(frozen=True)
class Part:
    """What one process measures."""

    name: str
    seconds: float
    """It is stopped after this long on a GPU; on a CPU only the time of the whole call limits it."""

    alone: bool = True
    """Whether its figures are timings, which other work would disturb."""


PARTS = (
    Part("build", 230, alone=False),
    Part("corpus", 90, alone=False),
    Part("golden_float32", 75, alone=False),
    Part("golden_bf16", 75, alone=False),
    Part("golden_compiled", 200, alone=False),
    Part("same_bits", 60, alone=False),
    Part("gpu_tests", 150, alone=False),
    Part("resume", 220, alone=False),
    Part("commands", 200, alone=False),
    Part("machine", 40),
    Part("train", 150),
    Part("embed", 45),
    Part("benchmark_train", 170),
    Part("train_recorded", 130),
    Part("profile", 100),
    Part("plan", 100),
    Part("compiled", 200),
    Part("precision", 80, alone=False),
    Part("benchmark_views", 60, alone=False),
    Part("benchmark_step", 80, alone=False),
    Part("stages", 60),
    Part("train_base", 240),
    Part("base", 70),
    Part("recompute", 60),
    Part("operations", 70),
)
"""In the order of what is worth most, should the time run out.

The first process to compile a step waits minutes for its kernels; those after it find them in Inductor's cache.
So ``build`` makes them while parts run that are no timings.
"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every part is told; travels to its process as JSON."""

    device: str
    size: str
    corpus: str
    """Folder of the corpus that the part ``corpus`` makes and others read."""

    output: str
    """Where files beside the results go."""

    results: str
    """Folder in which each part writes its own JSON file."""


@dataclass
class Running:
    """A part's process."""

    process: subprocess.Popen[bytes]
    began: float
    limit: float


class Session:
    """Runs parts within a time, and keeps ``results.json`` up to date."""

    def __init__(
        self,
        output: Path,
        results: Path,
        seconds: float,
        command: Callable[[Part], list[str]],
        *,
        side_by_side: bool,
    ) -> None:
        """Prepare to run.

        Args:
            output: existing folder of results.json and log.txt.
            results: existing folder in which parts write their JSON files.
            seconds: time for all parts together.
            command: the command line of a part's process.
            side_by_side: whether parts that are not timings run beside each other, and parts have limits.
        """
        self.output, self.results, self.command = output, results, command
        self.side_by_side = side_by_side
        self.began = time.monotonic()
        self.ends = self.began + seconds
        self.endings: dict[str, str] = {}

    def run(self, parts: Iterable[Part]) -> dict[str, Any]:
        """Run the parts in order, as far as time allows; returns what ``results.json`` then holds."""
        with (self.output / "log.txt").open("wb") as log:
            for group in groups(parts, side_by_side=self.side_by_side):
                left = self.ends - time.monotonic()
                if left < LEAST_SECONDS:
                    self.endings |= dict.fromkeys((p.name for p in group), "no time left")
                    continue
                self._wait({part.name: self._start(part, log) for part in group})
        return self.gather()

    def gather(self) -> dict[str, Any]:
        """Write ``results.json`` from what the parts have written so far."""
        found: dict[str, Any] = {"how each part ended": self.endings}
        for file in sorted(self.results.glob("*.json")):
            try:
                found[file.stem] = json.loads(file.read_text())
            except ValueError as error:
                found[file.stem] = {"error": f"the part's results are not JSON: {error}"}
        write_json(self.output / "results.json", found)
        return found

    def _start(self, part: Part, log: IO[bytes]) -> Running:
        left = self.ends - time.monotonic() - SPARE_SECONDS
        process = subprocess.Popen(
            self.command(part),
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            # A process group of its own, so that its own children can be stopped with it.
            start_new_session=True,
        )
        limit = min(part.seconds, left) if self.side_by_side else left
        return Running(process, time.monotonic(), limit)

    def _wait(self, running: dict[str, Running]) -> None:
        try:
            while running:
                for name, part in list(running.items()):
                    ending, taken = part.process.poll(), time.monotonic() - part.began
                    if ending is None and taken < part.limit:
                        continue
                    said = "stopped" if ending is None else f"exit code {ending}"
                    stop(part.process)
                    del running[name]
                    self.endings[name] = f"{said}, {taken:.0f} s"
                    # Some of it in the output too, should the files not come back from where this runs.
                    found = json.dumps(self.gather().get(name))[:SHOWN]
                    print(f"{name}: {self.endings[name]}: {found}", flush=True)
                time.sleep(0.05)
        finally:
            for part in running.values():
                stop(part.process)


def groups(parts: Iterable[Part], *, side_by_side: bool) -> Iterator[list[Part]]:
    """Consecutive parts that may run at the same time."""
    group: list[Part] = []
    for part in parts:
        if group and (part.alone or group[-1].alone or not side_by_side):
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def errors_in(found: Any, place: str = "") -> Iterator[str]:
    """Where in the results an error is reported, as names joined by ``: ``."""
    if isinstance(found, dict):
        if "error" in found:
            yield place
        for name, below in found.items():
            yield from errors_in(below, f"{place}: {name}" if place else name)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a part's process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write_json(path: Path, found: object) -> None:
    """Write aside and rename, because the reader may come at any time."""
    aside = path.with_name(f"{path.name}.aside")
    aside.write_text(json.dumps(found, indent=1, default=str))
    aside.replace(path)


def part_environment() -> None:
    """What every part's process, and the processes it starts, find in their environment."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }


def main() -> None:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="PART")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", help="default: small on a GPU, tiny on a CPU")
    parser.add_argument("--seconds", type=float, default=470.0, help="time for all parts together")
    given = parser.parse_args()
    output = given.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    part_environment()
    size = given.size or ("small" if given.device == "cuda" else "tiny")
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results")
        results.mkdir()
        settings = Settings(
            device=given.device,
            size=size,
            corpus=str(Path(folder, "corpus")),
            output=str(output),
            results=str(results),
        )

        def command(part: Part) -> list[str]:
            script = Path(__file__).with_name("on_gpu_parts.py")
            return [sys.executable, str(script), part.name, json.dumps(asdict(settings))]

        session = Session(
            output, results, given.seconds, command, side_by_side=given.device == "cuda"
        )
        found = session.run(part for part in PARTS if part.name in given.parts)
    missing = [name for name in given.parts if name not in found]
    failed = [*missing, *errors_in(found)]
    print(
        f"{output / 'results.json'} has {len(given.parts) - len(missing)} of {len(given.parts)} parts"
    )
    if failed:
        print(f"without a result, or with an error: {'; '.join(failed)}")


if __name__ == "__main__":
    main()

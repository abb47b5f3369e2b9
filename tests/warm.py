"""Programs in processes of their own that need not load torch: they are forks of one process that has.

Loading it takes a process some four seconds; the whole suite starts dozens.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
LOADED = ("torch._dynamo", "accelerate", "tests.engine.worker")


@dataclass(frozen=True)
class Program:
    """A module that runs as a program; what it prints goes into files."""

    parent: Warm
    process: int
    out: Path
    error: Path

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Until it ends; the code is minus the signal if one killed it."""
        code = int(self.parent.ask({"wait": self.process}))
        return subprocess.CompletedProcess(
            [], code, self.out.read_text(encoding="utf-8"), self.error.read_text(encoding="utf-8")
        )

    def send_signal(self, number: int) -> None:
        os.kill(self.process, number)


class Warm:
    """The process that has torch loaded."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"],
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, wanted: Mapping[str, Any]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def start(
        self, module: str, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
    ) -> Program:
        """As ``python -m MODULE ARGUMENTS`` in a folder, with some more variables set."""
        streams = [self._new_file(suffix) for suffix in (".out", ".error")]
        wanted = {"module": module, "arguments": arguments, "cwd": str(cwd), "env": dict(env or {})}
        process = int(self.ask(wanted | {"streams": [str(path) for path in streams]}))
        return Program(self, process, *streams)

    def _new_file(self, suffix: str) -> Path:
        number, name = tempfile.mkstemp(dir=self._folder, suffix=suffix)
        os.close(number)
        return Path(name)

    def run(
        self, module: str, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.start(module, *arguments, cwd=cwd, env=env).wait()

    def close(self) -> None:
        self._process.communicate(timeout=60)


@contextlib.contextmanager
def warm_process(folder: Path) -> Iterator[Warm]:
    process = Warm(folder)
    try:
        yield process
    finally:
        process.close()


def become(wanted: Mapping[str, Any]) -> int:
    """Run a program in this process; its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(wanted["cwd"])
    os.environ.update(wanted["env"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(wanted["streams"], start=1):
        os.dup2(os.open(path, os.O_WRONLY), number)
    sys.argv = [wanted["module"], *wanted["arguments"]]
    try:
        runpy.run_module(wanted["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve() -> None:
    """For each line of the input begin a program and say its number, or wait for one and say how it ended."""
    for name in LOADED:
        import_module(name)
    for line in sys.stdin:
        wanted = json.loads(line)
        if "wait" in wanted:
            _, status = os.waitpid(wanted["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201
            continue
        child = os.fork()
        if child == 0:
            code = become(wanted)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(child, flush=True)  # noqa: T201


if __name__ == "__main__":
    serve()

"""One embedding by several processes or a cluster: the same file to the byte, whatever ends in between."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pointdistill.data.corpus_building import dask_driver
from pointdistill.data.corpus_building.pool import NO_STEP, Died, Done
from pointdistill.engine.embedding import embed as embed_module
from pointdistill.engine.embedding import file as file_module
from pointdistill.engine.embedding.embed import embed
from pointdistill.engine.embedding.file import Chunk, WorkFolder
from pointdistill.engine.embedding.loop import ChunkTask, EmbedJob, Share
from pointdistill.errors import ConfigError, DataError
from tests.engine.test_embedding import COUNTS, OnProgress, folder, request
from tests.warm import Program, Warm

__all__ = ["folder"]

PROGRAM = "tests.engine.embedding_worker"
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def one_shape_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_module, "CHUNK_SHAPES", 1)


def started(warm: Warm, folder: Path, *arguments: str, processes: int = 2) -> list[Program]:
    """The program, once for each of the processes that a launcher would start."""
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    where = common | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    return [
        warm.start(
            PROGRAM,
            *arguments,
            cwd=folder,
            env=where | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]


def test_two_processes_write_the_bytes_of_one(warm: Warm, folder: Path) -> None:
    Path("clouds/bad.npy").write_bytes(b"no array")
    alone = embed(request("alone.npz"))
    ended = [program.wait() for program in started(warm, folder, "out.npz")]
    assert [one.returncode for one in ended] == [0, 0], ended
    first, second = (dict(line.split("=") for line in one.stdout.split()) for one in ended)
    assert int(first["saved"]) + int(second["saved"]) == len(COUNTS) + 1
    assert int(first["saved"]) > 0 < int(second["saved"])
    assert (first["shapes"], first["helper"], second["helper"]) == (
        str(alone.shapes),
        "False",
        "True",
    )
    assert Path("out.npz").read_bytes() == Path("alone.npz").read_bytes()
    assert not list(folder.glob(".out.npz*"))


def test_a_process_that_is_killed_costs_its_chunk_once_more(warm: Warm, folder: Path) -> None:
    """The lock of its chunk ends with it, and the first process takes that chunk too."""
    embed(request("alone.npz"))
    first, second = started(warm, folder, "out.npz", "kill-second")
    assert second.wait().returncode == -signal.SIGKILL
    assert first.wait().returncode == 0
    assert Path("out.npz").read_bytes() == Path("alone.npz").read_bytes()


def test_a_launcher_starts_several(
    folder: Path, warm: Warm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="which are not all that a launcher sets"):
        embed(request())
    for name, value in {"RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="a cluster does the work, but 2 processes were started"):
        embed(request(cluster="tcp://127.0.0.1:1"))
    Path("out.npz").write_bytes(b"written by the first process already")
    assert embed(request()).is_helper
    Path("out.npz").unlink()
    monkeypatch.setattr(file_module, "_JOIN_SECONDS", 0.0)
    with pytest.raises(DataError, match="the first of the processes has not begun it within 0 s"):
        embed(request())


def test_a_chunk_is_claimed_by_one_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    output = tmp_path / "out.npz"
    work = WorkFolder(output, {"seed": 0}, chunks=2)
    other = WorkFolder.join(output, {"seed": 0}, chunks=2)
    assert other is not None
    claim = work.claim(0)
    assert claim is not None
    assert other.claim(0) is None
    claim.close()
    again = other.claim(0)
    assert again is not None
    other.save(0, Chunk(0, 0))
    again.close()
    assert work.claim(0) is None, "it is on disk"
    assert work.missing() == [1]
    work.remove()
    assert other.claim(1) is None, "all is done"


def test_processes_begin_at_different_chunks() -> None:
    shares = [Share(rank=rank, processes=3) for rank in range(3)]
    orders = [share.order([0, 1, 2, 5, 6, 7, 9]) for share in shares]
    assert orders[0] == [0, 5, 9, 1, 6, 2, 7]
    assert [order[0] for order in orders] == [0, 1, 2]
    assert all(sorted(order) == [0, 1, 2, 5, 6, 7, 9] for order in orders)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        with distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            host="127.0.0.1",
            silence_logs=logging.CRITICAL,
        ) as cluster:
            yield cluster


def test_a_cluster_writes_the_bytes_of_one_process_although_a_worker_is_killed(
    folder: Path, cluster: Any
) -> None:
    Path("clouds/bad.npy").write_bytes(b"no array")
    embed(request("alone.npz"))
    victims: list[int] = []

    def kill_one(done: float) -> None:
        if done >= 2 and not victims:
            victims.append(next(iter(cluster.workers.values())).pid)
            os.kill(victims[0], signal.SIGKILL)

    report = embed(request(cluster=cluster.scheduler_address), reporter=OnProgress(kill_one))
    assert victims
    assert (report.shapes, len(report.failed)) == (len(COUNTS), 1)
    assert Path("out.npz").read_bytes() == Path("alone.npz").read_bytes()
    assert not list(folder.glob(".out.npz*"))


class OneWorker:
    """A cluster in this process; the fate of each task in turn: done, dead at its shape, or stopped."""

    def __init__(self, job: EmbedJob, fates: list[str]) -> None:
        self.job, self.fates = job, fates
        self.queue: list[ChunkTask] = []

    def __enter__(self) -> OneWorker:
        return self

    def __exit__(self, *error: object) -> None:
        self.queue.clear()

    def submit(self, task: ChunkTask, *, first: bool = False) -> None:
        self.queue.insert(0 if first else len(self.queue), task)

    def events(self) -> Iterator[Any]:
        while self.queue:
            task = self.queue.pop(0)
            fate = self.fates.pop(0) if self.fates else "done"
            begun: list[int] = []
            if fate == "stop":
                os.kill(os.getpid(), signal.SIGTERM)
            elif fate == "die":
                yield Died(task, self.job.chunk_size * task.number, "exit code 3")
            else:
                assert self.job.finished(task) is None
                yield Done(task, self.job(task, begun.append))
                assert begun == [task.number, NO_STEP]


def on_one_worker(monkeypatch: pytest.MonkeyPatch, *fates: str) -> Any:
    def opened(job: EmbedJob, address: str, limits: None) -> OneWorker:
        assert address == "tcp://127.0.0.1:1"
        assert job.inputs == (Path("clouds").resolve(),)
        return OneWorker(job, list(fates))

    monkeypatch.setattr(dask_driver, "open_cluster", opened)
    return embed(request(cluster="tcp://127.0.0.1:1"))


def test_one_process_goes_on_where_a_cluster_was_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(request("alone.npz"))
    report = on_one_worker(monkeypatch, "done", "done", "stop")
    assert (report.interrupted, report.shapes) == (True, 2)
    assert embed(request()).shapes == len(COUNTS)
    assert Path("out.npz").read_bytes() == Path("alone.npz").read_bytes()


def test_a_shape_at_which_processes_of_a_cluster_die_twice_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = on_one_worker(monkeypatch, "done", "die", "done", "die", "die")
    assert report.shapes == len(COUNTS) - 1
    ((name, reason),) = report.failed
    assert name == "02.npy"
    assert "the process that read it ended (exit code 3)" in reason

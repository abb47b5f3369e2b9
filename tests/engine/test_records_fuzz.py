"""Records that are damaged at random, or lie: each is read, or refused in one line that names it.

Each is damaged a few times in the suite. ``nox -s fuzz`` damages 5,000 (``POINTDISTILL_FUZZ``), with others
each time that ``POINTDISTILL_FUZZ_SEED`` is another number.
"""

from __future__ import annotations

import ast
import io
import json
import os
import resource
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pointdistill.data.benchmarks.lvis import annotated_uids
from pointdistill.data.corpus import open_corpus
from pointdistill.data.corpus.inspect import inspect_corpus, verify_corpus
from pointdistill.data.corpus.manifest import read_manifest
from pointdistill.data.corpus.refused import RefusedShape, count_causes, write_refused
from pointdistill.data.corpus.shard import make_row
from pointdistill.data.corpus_building.division import Span
from pointdistill.data.corpus_building.source_status import HELD_OUT
from pointdistill.data.corpus_building.state import BuildFolder, Outcome, Refusal, unfinished_build
from pointdistill.data.files import workspace
from pointdistill.data.files.hdf5 import open_hdf5
from pointdistill.data.files.schema import to_plain
from pointdistill.engine.config.settings import RunOverrides
from pointdistill.engine.embedding.comparison import nearest
from pointdistill.engine.embedding.embed import EmbedRequest, embed
from pointdistill.engine.embedding.index import open_index
from pointdistill.engine.embedding.search import _neighbours
from pointdistill.engine.evaluation.results import Spread
from pointdistill.engine.evaluation.store import ScoreStore
from pointdistill.engine.finetuning.models import load_model
from pointdistill.engine.pretraining.launch import prepare_resumed_run
from pointdistill.engine.pretraining.pretrain import pretrain
from pointdistill.engine.pretraining.run_folder import (
    encoder_line,
    read_metrics,
    read_run_environment,
    resume_run,
    training_record,
)
from pointdistill.engine.sharing.push import prepare
from pointdistill.engine.weights.encoders import load_encoder, read_facts
from pointdistill.errors import PointDistillError
from tests.data.test_corpus import write_corpus
from tests.engine.conftest import micro_config
from tests.engine.labelled import saved_encoder
from tests.engine.runs import options
from tests.engine.test_models import classifier_folder, segmenter_folder
from tests.engine.test_push import row

RECORDS = int(os.environ.get("POINTDISTILL_FUZZ", "0"))
SEED = int(os.environ.get("POINTDISTILL_FUZZ_SEED", "0"))
FEW = 4
"""Damaged copies of each record in the suite."""

MOST_SECONDS = 20.0
"""For one record, on a machine that does other things: without a bound on what is read it would be minutes."""

MOST_GROWTH = 2 * 2**30
"""Bytes that the process may grow by."""


@dataclass(frozen=True)
class Record:
    """A record on disk, and everything that reads it."""

    file: str
    """Below the folder of all records."""

    read: Callable[[Path], object]
    """Called with that folder."""

    damage: Callable[[bytes, np.random.Generator], bytes]


# Damage


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, often near the beginning, where headers are."""
    changed = bytearray(content)
    reach = len(changed) if rng.random() < 0.5 else min(len(changed), 2048)
    for place in rng.integers(reach, size=rng.integers(1, 6)):
        changed[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
    return bytes(changed)


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


def grown(content: bytes, rng: np.random.Generator) -> bytes:
    place = rng.integers(len(content))
    return content[:place] + rng.bytes(rng.integers(1, 64)) + content[place:]


def any_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    return [flipped, flipped, flipped, cut, grown][rng.integers(5)](content, rng)


STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, -(2**63), 1e308, 0.5, "", "x" * 5000, "\0", "../../x",
    "/dev/zero", "é\u202e", [], {}, [[]], [None], {"": 0}, [1, 2, 3], "none", ["x"] * 300,
)  # fmt: skip
TEXTS = (
    "NaN", "-Infinity", "1e999", "9" * 5000, "9" * 30, "[" * 100_000, "[" * 500 + "]" * 500, '{"a":' * 2000,
    '"\\ud800"', "", "nul", '"\\u0000"',
)  # fmt: skip


def swapped(value: Any, rng: np.random.Generator) -> Any:
    """JSON with one value, somewhere in it, of another kind, gone, renamed or doubled."""
    value = json.loads(json.dumps(value))
    places = []

    def walk(inside: Any) -> None:
        keys = inside.keys() if isinstance(inside, dict) else range(len(inside))
        for key in keys:
            places.append((inside, key))
            if isinstance(inside[key], dict | list):
                walk(inside[key])

    if isinstance(value, dict | list):
        walk(value)
    if not places or rng.random() < 0.03:
        return STRANGE[rng.integers(len(STRANGE))]
    inside, key = places[rng.integers(len(places))]
    way = rng.integers(6)
    if way == 0:
        del inside[key]
    elif way == 1 and isinstance(inside, dict):
        inside[f"{key}x"] = inside.pop(key)
    elif way == 2 and isinstance(inside, list):
        inside.append(inside[key])
    elif way == 3 and isinstance(inside[key], int | float):
        inside[key] = inside[key] * int(rng.choice([-1, 2, 1000, 2**40]))
    else:
        inside[key] = STRANGE[rng.integers(len(STRANGE))]
    return value


def json_text(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage to a JSON file: to its values, or to its text."""
    way = rng.integers(10)
    if way < 6:
        return json.dumps(swapped(json.loads(content), rng)).encode()
    if way < 8:
        scalars = [at for at, byte in enumerate(content) if byte in b":[,"]
        at = scalars[rng.integers(len(scalars))] + 1 if scalars else 0
        return content[:at] + TEXTS[rng.integers(len(TEXTS))].encode() + content[at:]
    return any_bytes(content, rng)


def json_lines(content: bytes, rng: np.random.Generator) -> bytes:
    lines = content.splitlines(keepends=True)
    number = rng.integers(len(lines))
    lines[number] = json_text(lines[number], rng) + b"\n" * int(rng.integers(2))
    return b"".join(lines)


def safetensors(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage to the header, which is JSON of a stated length, or to anything."""
    if rng.random() < 0.3:
        return any_bytes(content, rng)
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    if rng.random() < 0.5 and "__metadata__" in header:
        known = header["__metadata__"]
        key = sorted(known)[rng.integers(len(known))]
        known[key] = json_text(known[key].encode(), rng).decode("utf-8", "replace")
    else:
        header = swapped(header, rng)
    text = json.dumps(header).encode()
    lies = [0, 2**20, 2**40, 2**63 - 1]
    stated = lies[rng.integers(len(lies))] if rng.random() < 0.1 else len(text)
    return struct.pack("<Q", stated) + text + content[8 + length :]


def npz(content: bytes, rng: np.random.Generator) -> bytes:
    """A member whose header says something else, a member gone or damaged, or damage to the zip itself."""
    if rng.random() < 0.3:
        return any_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = sorted(members)[rng.integers(len(members))]
    way = rng.integers(5)
    if way == 0:
        del members[name]
    elif way == 1:
        members[name] = any_bytes(members[name], rng)
    elif way == 2 and "info.npy" in members:
        text = str(np.load(io.BytesIO(members["info.npy"])))
        damaged = io.BytesIO()
        np.save(damaged, np.array(json_text(text.encode(), rng).decode("utf-8", "replace")))
        members["info.npy"] = damaged.getvalue()
    else:
        members[name] = npy(members[name], rng)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for member, stored in members.items():
            archive.writestr(member, stored)
    return packed.getvalue()


def npy(content: bytes, rng: np.random.Generator) -> bytes:
    """An array whose header lies."""
    length = struct.unpack("<H", content[8:10])[0]
    header: dict[str, Any] = ast.literal_eval(content[10 : 10 + length].decode())
    shapes = [(-1, 192), (2**40, 12), (-1,), (0,), (2**62, 2**62), (), (1, 2, 3), (7,), (3, 2**31)]
    kinds = ["<U100000000", "|O", ">f4", "<f8", "<U0", "<i4", "|V8", "<c16", "<M8[s]", "|b1"]
    if rng.random() < 0.6:
        header["shape"] = shapes[rng.integers(len(shapes))]
    if rng.random() < 0.4:
        header["descr"] = kinds[rng.integers(len(kinds))]
    if rng.random() < 0.1:
        header["fortran_order"] = True
    text = repr(header).encode() + b"\n"
    return content[:8] + struct.pack("<H", len(text)) + text + content[10 + length :]


# Readers


def read_corpus(folder: Path) -> None:
    corpus = open_corpus(folder / "corpus")
    for number in range(min(len(corpus), 20)):
        corpus[number]
    corpus.labels()
    corpus.ids()
    corpus.describe()


def inspect(folder: Path) -> None:
    inspect_corpus(folder / "corpus")


def verify(folder: Path) -> None:
    verify_corpus(folder / "corpus")


def read_refusals(folder: Path) -> None:
    count_causes(folder / "corpus" / "refused.jsonl")


def read_run(folder: Path) -> None:
    read_run_environment(folder / "run")
    prepare_resumed_run(RunOverrides(), data=None, run=folder / "run")


def resume(folder: Path) -> None:
    """The run's newest checkpoint is of step 4, the one before of step 2."""
    state, _ = resume_run(open_corpus(folder / "corpus"), folder / "run")
    assert state.step in (2, 4)


def read_encoder(folder: Path) -> None:
    encoder_line(folder / "encoder")
    load_encoder(folder / "encoder")
    training_record(folder / "encoder", read_facts(folder / "encoder"))


def read_weights(folder: Path) -> None:
    weights = folder / "encoder" / "model.safetensors"
    alone = shutil.copy(weights, folder / "alone.safetensors")
    try:
        load_encoder(alone)
        read_facts(alone)
    finally:
        alone.unlink()
        load_encoder(folder / "encoder")


def share(folder: Path) -> None:
    for name in ("encoder", "classifier", "segmenter"):
        shutil.rmtree(folder / "card", ignore_errors=True)
        prepare(folder / name, "jane/shapes", folder / "card", working=folder)


def read_models(folder: Path) -> None:
    load_model(folder / "classifier")
    load_model(folder / "segmenter")


def search_in(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        index = open_index(folder / name)
        width = index.facts.width if index.facts.width < 10**6 else 1
        (ranked,) = nearest(index, np.ones((1, width), np.float32), 3)
        index.statistics(width)
        _neighbours(index, ranked)

    return read


def read_scores(folder: Path) -> None:
    store = ScoreStore(folder / "scored")
    store.draw(store.results())
    store.publish()


def read_build(folder: Path) -> None:
    build = BuildFolder(folder / "building")
    build.piece_outcome(Span(0, 4))
    if build.shard_outcome(0) is not None:
        build.shard_record(0)
    with unfinished_build(folder / "building", {"points": 64, "source": {"archive_sha256": None}}):
        pass


def read_workspace(folder: Path) -> None:
    for look in (workspace.last_corpus, workspace.last_run, workspace.last_embedding):
        look(folder=folder)
    workspace.last_embedding(Path("meshes"), folder=folder)
    workspace.last_stand_in("lvis", folder=folder)


def read_member(folder: Path) -> None:
    with open_hdf5((folder / "member.h5").read_bytes(), "member.h5") as file:
        file.dataset("data").read()
        file.dataset("label").read()
        file.attribute("made")


def read_parts(folder: Path) -> None:
    HELD_OUT[0].read(folder / "shuffled_test_file_list.json")


def read_annotation(folder: Path) -> None:
    annotated_uids(folder / "lvis-annotations.json")


RECORDS_OF: dict[str, Record] = {
    "corpus.json": Record("corpus/corpus.json", read_corpus, json_text),
    "corpus.json, inspected": Record("corpus/corpus.json", inspect, json_text),
    "corpus.json, verified": Record("corpus/corpus.json", verify, json_text),
    "shard": Record("corpus/a-00000.h5", read_corpus, any_bytes),
    "shard, inspected": Record("corpus/a-00000.h5", inspect, any_bytes),
    "shard, verified": Record("corpus/a-00000.h5", verify, any_bytes),
    "refused.jsonl": Record(
        "corpus/refused.jsonl", lambda f: count_causes(f / "corpus" / "refused.jsonl"), json_lines
    ),
    "run": Record("run/config.json", read_run, json_text),
    "run, resumed": Record("run/config.json", resume, json_text),
    "state.json": Record("run/checkpoints/step-00000004/state.json", resume, json_text),
    "checkpoint": Record("run/checkpoints/step-00000004/model.safetensors", resume, safetensors),
    "metrics": Record("run/metrics.jsonl", lambda f: read_metrics(f / "run"), json_lines),
    "metrics, resumed": Record("run/metrics.jsonl", resume, json_lines),
    "encoder": Record("encoder/config.json", read_encoder, json_text),
    "encoder, shared": Record("encoder/config.json", share, json_text),
    "weights": Record("encoder/model.safetensors", read_weights, safetensors),
    "classifier": Record("classifier/config.json", read_models, json_text),
    "classifier, shared": Record("classifier/config.json", share, json_text),
    "segmenter": Record("segmenter/config.json", read_models, json_text),
    "segmenter's weights": Record("segmenter/model.safetensors", read_models, safetensors),
    "npz": Record("features.npz", search_in("features.npz"), npz),
    "parquet": Record("features.parquet", search_in("features.parquet"), any_bytes),
    "score": Record("scored/scores/test-0-0123456789ab.json", read_scores, json_text),
    "results.json": Record("scored/results.json", read_scores, json_text),
    "piece": Record("building/.building/piece-00000000-00000004.json", read_build, json_text),
    "shard's mark": Record("building/.building/shard-00000.json", read_build, json_text),
    "plan": Record("building/.building/plan.json", read_build, json_text),
    "workspace": Record(".pointdistill/workspace.json", read_workspace, json_text),
    "member": Record("member.h5", read_member, any_bytes),
    "part list": Record("shuffled_test_file_list.json", read_parts, json_text),
    "annotation": Record("lvis-annotations.json", read_annotation, json_text),
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each record, all intact, in one folder."""
    folder = tmp_path_factory.mktemp("records")
    rng = np.random.default_rng(0)
    rows = [
        make_row(f"shape {k:02d}", rng.normal(size=(60 + k, 3)).astype(np.float32), label=k % 3 - 1)
        for k in range(12)
    ]
    write_corpus(folder / "corpus", [("a", rows)])
    refused = [
        RefusedShape(source="a", id=f"bad {k}", cause="it is empty", retryable_failure=None)
        for k in range(3)
    ]
    write_refused(folder / "corpus" / "refused.jsonl", refused)
    manifest = json.loads((folder / "corpus" / "corpus.json").read_text())
    manifest["refused_sha256"] = "0" * 64
    (folder / "corpus" / "corpus.json").write_text(json.dumps(manifest))
    corpus = open_corpus(folder / "corpus")
    # Two checkpoints, of steps 2 and 4.
    for stop in (2, 4):
        pretrain(
            micro_config(),
            corpus=corpus,
            run=folder / "run",
            resume=stop > 2,
            options=options(stop_at=stop),
        )
    saved_encoder(folder / "encoder")
    classifier_folder(folder / "classifier")
    segmenter_folder(folder / "segmenter")
    for ending in ("npz", "parquet"):
        if ending == "parquet":
            pytest.importorskip("pyarrow")
        embed(
            EmbedRequest(
                paths=[folder / "corpus"],
                output=folder / f"features.{ending}",
                encoder=folder / "encoder",
                points=48,
                device="cpu",
            )
        )
    write_score(folder / "scored")
    build = BuildFolder(folder / "building")
    build.path.mkdir(parents=True)
    outcome = Outcome(3, (Refusal("bad", "it is empty", "deadline"),))
    build.finish_piece(Span(0, 4), outcome)
    record = read_manifest(folder / "corpus").shards[0]
    build.finish_shard(0, outcome, record)
    shutil.copy(folder / "corpus" / record.file, folder / "building")
    (build.path / "plan.json").write_text(
        json.dumps({"points": 64, "source": {"archive_sha256": None}})
    )
    workspace.remember_corpus(folder / "corpus", folder=folder)
    workspace.remember_run(folder / "run", folder=folder)
    workspace.remember_embedding(folder / "features.npz", [folder / "corpus"], folder=folder)
    workspace.remember_stand_in("lvis", folder / "encoder", folder=folder)
    with h5py.File(folder / "member.h5", "w") as file:
        file.create_dataset(
            "data", data=rng.normal(size=(4, 60, 3)), compression="gzip", shuffle=True
        )
        file["label"] = np.arange(4)
        file.attrs["made"] = "for a test"
    names = [f"shape_data/02691156/{k:032x}" for k in range(5)]
    (folder / "shuffled_test_file_list.json").write_text(json.dumps(names))
    (folder / "lvis-annotations.json").write_text(
        json.dumps({"chair": names[:2], "lamp": names[2:]})
    )
    return folder


def write_score(output: Path) -> None:
    """The score of one seed, and the results made of it."""
    figures = {"accuracy": Spread(50.0, None), "class_accuracy": Spread(49.0, None)}
    result = row(seeds=(0,), each=(50.0,), **figures)
    stored = {"result": to_plain(result), "classes": ["a", "b"], "confusion": ["3 1", "2 2"]}
    path = output / "scores" / "test-0-0123456789ab.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(stored))
    ScoreStore(output).publish()


@pytest.mark.parametrize("name", RECORDS_OF)
def test_every_record_is_read_as_it_is(records: Path, name: str) -> None:
    """Otherwise the damage would be that of the test."""
    RECORDS_OF[name].read(records)


@pytest.mark.parametrize("name", RECORDS_OF)
def test_a_damaged_record_is_read_or_refused_in_one_line(
    records: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    record = RECORDS_OF[name]
    path = records / record.file
    intact = {
        file: file.read_bytes()
        for file in records.rglob("*")
        if file.is_file() and file.is_relative_to(records / Path(record.file).parts[0])
    }
    rng = np.random.default_rng([SEED, *name.encode()])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(-(-RECORDS // len(RECORDS_OF)) or FEW):
        damaged = record.damage(intact[path], rng)
        path.write_bytes(damaged)
        began = time.perf_counter()
        try:
            record.read(records)
        except PointDistillError as error:
            text = str(error)
            assert "\n" not in text, (number, text)
            assert len(text) < 2000, (number, text)
            # The file, or the folder whose record it is; weights are also read from a copy of another name.
            assert any(part in text for part in (*path.relative_to(records).parts, "alone")), text
        except Exception as error:
            keep = Path(os.environ.get("TMPDIR", "/tmp"), f"damaged-{number}-{path.name}")
            keep.write_bytes(damaged)
            pytest.fail(
                f"damage {number} of {name}, kept as {keep}: {type(error).__name__}: {error}"
            )
        finally:
            for file, content in intact.items():
                file.parent.mkdir(parents=True, exist_ok=True)
                if not file.is_file() or file.read_bytes() != content:
                    file.write_bytes(content)
        assert time.perf_counter() - began < MOST_SECONDS, f"damage {number} of {name}"
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MOST_GROWTH, f"{name}: {grown:,} bytes"
    assert "Traceback" not in capfd.readouterr().err

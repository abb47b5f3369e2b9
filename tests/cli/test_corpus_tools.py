"""``inspect``, ``verify``, ``preview`` and ``corpus`` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pointdistill.cli.corpus_tools import ExportFormat
from pointdistill.data.corpus_building.export import LAYOUTS
from pointdistill.data.files.workspace import last_corpus, remember_corpus
from tests.cli.typed import Run, typed
from tests.data.test_corpus import edit, some_rows, write_corpus
from tests.data.test_corpus_verify import flip_byte, place_of


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type a command beside a corpus of 4 + 3 shapes of source a and 5 of b; exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    rows = some_rows("a", 7)
    write_corpus(Path("mix"), [("a", rows[:4]), ("a", rows[4:]), ("b", some_rows("b", 5))])
    return typed(capsys)


def add_refusals() -> None:
    stored = json.loads(Path("mix/corpus.json").read_text())
    sources = [
        source | {"licence": licence, "refused": refused}
        for source, licence, refused in zip(
            stored["sources"], ("CC BY-NC 4.0", "CC BY 4.0"), (3, 0), strict=True
        )
    ]
    lines = [
        {"source": "a", "id": f"bad{k}", "cause": f"{k} of 9 points are not finite"} for k in (1, 2)
    ]
    lines.append({"source": "a", "id": "late", "cause": "too slow", "backstop": "deadline"})
    Path("mix/refused.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    edit(Path("mix"), {"sources": sources, "refused_sha256": "0" * 64})


def test_inspect_prints_counts_licences_and_refusals(run: Run) -> None:
    add_refusals()
    code, out, err = run("inspect", "mix")
    assert (code, err) == (0, "")
    assert "a\t7\t3\t2\t40, 43, 46" in out
    assert "refused\t3, of which prepare-data can try 1 again\n" in out
    assert "a\tCC BY-NC 4.0\tNO COMMERCIAL USE\ta test" in out
    assert "b\tCC BY 4.0\tany use\ta test" in out
    assert "- NOT FOR COMMERCIAL USE: a\n" in out
    assert "Labels of b\nlabel\tshapes\ntable\t2\nlamp\t1\n" in out
    assert "a\t2\t-\t… of … points are not finite\tbad1: 1 of 9 points are not finite" in out
    assert "a\t1\tdeadline\ttoo slow\tlate" in out
    content = json.loads(Path("mix/corpus.json").read_text())["content"]
    assert f"- content: {content}\n" in out
    assert f"- refused.jsonl: {'0' * 64}\n" in out
    assert out.endswith("next: pointdistill verify mix\n")


def test_inspect_prints_json_and_nothing_else(run: Run) -> None:
    add_refusals()
    code, out, _ = run("inspect", "mix", "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["shapes"], told["refused"], told["non_commercial"]) == (12, 3, ["a"])
    assert [source["terms"] for source in told["sources"]] == ["no commercial use", "any use"]
    assert told["sources"][1]["labels"] == {"table": 2, "lamp": 1}
    assert told["sources"][1]["unlabelled"] == 2
    assert told["refused_causes"][0]["shapes"] == 2
    assert told["content"] == json.loads(Path("mix/corpus.json").read_text())["content"]


def test_many_labels_are_cut_in_the_table_and_whole_in_json(run: Run) -> None:
    stored = json.loads(Path("mix/corpus.json").read_text())
    many = ["chair", "table", *(f"label {k}" for k in range(40))]
    edit(Path("mix"), {"sources": [stored["sources"][0] | {"labels": many}, stored["sources"][1]]})
    _, out, _ = run("inspect", "mix")
    assert "- and 17 more labels of 0 shapes; the JSON has them." in out
    _, out, _ = run("inspect", "mix", "--json")
    assert len(json.loads(out)["sources"][0]["labels"]) == 42


def test_a_long_setting_is_cut_in_the_table_and_whole_in_json(run: Run) -> None:
    stored = json.loads(Path("mix/corpus.json").read_text())
    left_out = [f"shape{k:03d}" for k in range(100)]
    settings = {"test": False, "made_with": {"seed": 0, "points": 1024}, "left_out": left_out}
    first = stored["sources"][0] | {"settings": settings}
    edit(Path("mix"), {"sources": [first, stored["sources"][1]]})
    _, out, _ = run("inspect", "mix")
    row = "a\t-\tnone\ttest: no; made with: seed 0, points 1,024; left out: shape000, shape001, "
    assert row in out
    assert "refused\t0\n" in out
    assert "shape050" not in out
    _, out, _ = run("inspect", "mix", "--json")
    assert json.loads(out)["sources"][0]["settings"]["left_out"] == left_out


def test_verify_ends_with_zero_or_a_line_for_each_damage(run: Run) -> None:
    code, out, err = run("verify", "mix")
    assert (code, err) == (0, "")
    assert out.startswith("mix is whole: 12 shapes in 3 shards, content ")
    assert "next: pointdistill preview mix" in out
    for name in ("a-00001.h5", "b-00002.h5"):
        flip_byte(Path("mix", name), place_of(Path("mix", name), "scale"))
    code, out, err = run("verify", "mix")
    assert code == 2
    assert out.splitlines() == [
        "a-00001.h5: shape 0 (a/é04): does not match its checksum",
        "b-00002.h5: shape 0 (b/é00): does not match its checksum",
    ]
    assert err.startswith("mix: 2 things are wrong; copy it again")
    assert err.count("\n") == 1


def test_preview_writes_both_files_of_what_was_asked_for(run: Run) -> None:
    code, out, err = run("preview", "mix", "--label", "table", "--source", "b")
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == [
        "picture: mix-preview.png, 2 of 12 shapes",
        "page: mix-preview.html, open it in a browser",
    ]
    assert "b/\\u00e901" in Path("mix-preview.html").read_text(encoding="utf-8")
    first = Path("mix-preview.html").read_bytes()
    run("preview", "mix", "--label", "table", "--source", "b", "--output", "out/again")
    assert Path("out/again.html").read_bytes() == first
    assert Path("out/again.png").read_bytes() == Path("mix-preview.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("inspect",), "no corpus was made in this folder yet"),
        (("verify", "nowhere"), "nowhere: no such corpus"),
        (("preview", "mix", "--label", "tabel"), "did you mean 'table'?"),
        (("preview", "mix", "--ids", "zebra"), "no shape 'zebra'"),
        (("preview", "mix", "--shapes", "0"), "--shapes must be a whole number from 1 to 500"),
    ],
)
def test_wrong_input_is_one_line(run: Run, words: tuple[str, ...], message: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_the_last_corpus_made_here_needs_no_name(run: Run) -> None:
    remember_corpus(Path("mix"))
    for command in ("inspect", "verify"):
        code, _, err = run(command)
        assert (code, err) == (0, "corpus: mix (the last one made in this folder)\n")


def test_corpora_are_divided_chosen_merged_and_exported(run: Run) -> None:
    one = ("--workers", "1")
    code, out, _ = run(
        "corpus", "split", "mix", "-o", "parts", "--shares", "train=0.75,test=0.25", *one
    )
    assert (code, out.splitlines()[0]) == (0, "parts/train is complete: 9 shapes (a 5, b 4)")
    assert "parts/test is complete: 3 shapes (a 2, b 1)" in out
    Path("names.txt").write_text("a/é01\nb/é02\n\n", encoding="utf-8")
    code, out, _ = run("corpus", "subset", "mix", "--ids", "names.txt", "--output", "two", *one)
    assert (code, out.splitlines()[-1]) == (0, "next: pointdistill verify two")
    assert last_corpus() == Path("two")
    code, out, err = run("corpus", "merge", "parts/test", "two", "parts/train", "-o", "all", *one)
    assert (code, "all is complete: 12 shapes (a 7, b 5)" in out) == (0, True)
    assert "a: 1 shape is in parts/test and in parts/train; kept once" in err
    code, out, _ = run("corpus", "export", "all", "--format", "ply", "-o", "files", *one)
    assert (code, out.splitlines()[0]) == (0, "files is complete: 12 shapes in 12 files")
    code, out, _ = run("verify", "files")
    assert (code, out) == (0, "files is whole: every file of the export is as it was written\n")
    Path("files/a/a/%C3%A900.ply").unlink()
    code, out, _ = run("verify", "files")
    assert (code, out) == (2, "a/a/%C3%A900.ply: missing\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("split", "mix", "-o", "x", "--shares", "0.8"),
            "expected a list of different names with sh",
        ),
        (("split", "mix", "-o", "x", "--shares", "a=0.5,b=0.6"), "must add up to 1"),
        (("subset", "mix", "-o", "x", "--label", "tabel"), "did you mean 'table'?"),
        (("subset", "mix", "-o", "x", "--ids", "gone.txt"), "gone.txt: cannot be read as text"),
        (("merge", "mix", "-o", "x"), "name two or more"),
        (("export", "nowhere", "-o", "x"), "nowhere: no such corpus"),
        (("export", "mix", "-o", "mix"), "mix: exists and is another thing"),
    ],
)
def test_wrong_input_of_the_tools_is_one_line(
    run: Run, words: tuple[str, ...], message: str
) -> None:
    code, out, err = run("corpus", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("x").exists()


def test_the_group_alone_lists_its_commands(run: Run) -> None:
    code, out, err = run("corpus")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "Usage: pointdistill corpus COMMAND [OPTIONS]"
    first = lines.index("Commands:") + 1
    commands = [line.split()[0] for line in lines[first : first + 4]]
    assert commands == ["merge", "subset", "split", "export"]
    assert lines[-2:] == ["Example:", "  pointdistill corpus split data/own -o parts"]
    assert run("corpus", "--help") == (0, out, "")


def test_the_formats_that_help_names_are_those_there_are() -> None:
    assert [member.value for member in ExportFormat] == list(LAYOUTS)

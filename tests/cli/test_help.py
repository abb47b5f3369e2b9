"""Help by purpose, an example for each command, what wrong words are answered with, and the Tab key."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pointdistill.cli import COMMANDS, PROGRAM, app, functions
from pointdistill.cli.help import did_you_mean, parameters_of
from pointdistill.data.sources import SOURCES
from pointdistill.engine.config.recipes import RECIPES
from pointdistill.engine.planning.cards import CARDS
from pointdistill.engine.weights import PUBLISHED
from tests.cli.typed import Run, typed

NAMES = list(functions)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return typed(capsys)


def test_every_command_stands_in_one_group_of_the_list(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run("--help")
    assert code == 0
    listed = re.findall(r"^  ([a-z][a-z-]+)  +[A-Z]", out, re.MULTILINE)
    assert set(listed) == {name.split()[0] for name in NAMES}
    assert len(listed) == len(set(listed))
    assert [f"\n{title}:\n" in out for title in COMMANDS] == [True] * len(COMMANDS)
    assert max(map(len, out.splitlines())) <= 80
    alone = {name for name in NAMES if " " not in name}
    assert {command.name for command in app.registered_commands} == alone


@pytest.mark.parametrize("name", NAMES)
def test_help_has_an_example_and_no_words_of_a_validator(
    name: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(*name.split(), "--help")
    assert code == 0
    text, _, example = out.partition("\nExample:\n  ")
    assert example.startswith(f"{PROGRAM} {name}")
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"<\w|x>=|<=x|list\[|9223372036854775807|None", text)
    for parameter in parameters_of(functions[name]):
        assert parameter.help
        assert (parameter.spelled or (parameter.metavar,))[0] in text


def test_limits_and_defaults_are_said_once() -> None:
    preview = {one.name: one for one in parameters_of(functions["preview"])}
    assert preview["shapes"].help.endswith("[from 1 to 500; default: 24]")
    assert preview["seed"].help.endswith("[default: 0]")
    assert preview["corpus"].help.count("efault") == 1
    prepare = {one.name: one for one in parameters_of(functions["prepare-data"])}
    assert prepare["points"].help.endswith("[at least 32; default: 16384]")
    assert prepare["path"].label == "--input, --archive, --archives PATH"
    evaluate = {one.name: one for one in parameters_of(functions["evaluate"])}
    assert "one of scanobjectnn, modelnet40" in evaluate["benchmark"].help
    assert evaluate["hold_out"].label == "--hold-out SHARE"
    assert evaluate["output"].label == "--output, -o PATH"
    finetune = {one.name: one for one in parameters_of(functions["finetune"])}
    assert finetune["held_out"].label == "--held-out SHARE"
    merge = {one.name: one for one in parameters_of(functions["corpus merge"])}
    assert merge["corpora"].label == "CORPUS…"
    split = {one.name: one for one in parameters_of(functions["corpus split"])}
    assert split["shares"].label == "--shares NAME=SHARE,…"
    pretrain = {one.spelled: one for one in parameters_of(functions["pretrain"])}
    assert pretrain[("--compile",)].label == "--compile auto|on|off"
    sample = {one.name: one for one in parameters_of(functions["sample"])}
    assert sample["cloud_format"].label == "--format npy|ply|xyz|pcd"
    embed = {one.name: one for one in parameters_of(functions["embed"])}
    assert embed["features"].label == "--features NAME"
    assert embed["dtype"].label == "--dtype float32|float16"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "pretrain --size smal",
            "--size must be one of tiny, small, base, large, got 'smal'; did you mean 'small'?",
        ),
        (
            "evaluate scanobject",
            "BENCHMARK must be one of scanobjectnn, modelnet40, fewshot, shapenetpart, lvis, psb, folder, all, "
            "got 'scanobject'; did you mean 'scanobjectnn'?",
        ),
        (
            "pretrain --epochs x",
            "--epochs must be a whole number of at least 1, got 'x'; see `pointdistill pretrain --help`",
        ),
        (
            "pretrain --epochs=0",
            "--epochs must be a whole number of at least 1, got '0'; see `pointdistill pretrain --help`",
        ),
        (
            "preview --shapes 900",
            "--shapes must be a whole number from 1 to 500, got '900'; see `pointdistill preview --help`",
        ),
        (
            "finetune --held-out much",
            "--held-out must be a number, got 'much'; see `pointdistill finetune --help`",
        ),
        (
            "finetune --hold-out much",
            "--held-out must be a number, got 'much'; see `pointdistill finetune --help`",
        ),
        (
            "evaluate psb --held-out much",
            "--hold-out must be a number, got 'much'; see `pointdistill evaluate --help`",
        ),
        ("pretrain --sice tiny", "there is no option --sice; did you mean '--size'?"),
        ("pretrain --epochs", "--epochs needs a value: N; see `pointdistill pretrain --help`"),
        ("pretain", "there is no command 'pretain'; did you mean 'pretrain'?"),
        ("corpus splt", "there is no command 'splt'; did you mean 'split'?"),
        ("corpus nope", "there is no command 'nope'; see `pointdistill corpus --help`"),
        (
            "corpus merge a b -o c --format",
            "there is no option --format; see `pointdistill corpus merge --help`",
        ),
        (
            "corpus merge a b",
            "--output is missing: folder to make. An interrupted command continues; see "
            "`pointdistill corpus merge --help`",
        ),
        ("corpus --verzion", "there is no option --verzion; see `pointdistill corpus --help`"),
        ("frobnicate", "there is no command 'frobnicate'; see `pointdistill --help`"),
        (
            "embed",
            "PATH… is missing: mesh and point files, folders, zips, corpora; see `pointdistill embed --help`",
        ),
        (
            "leaks",
            "BENCHMARK is missing: one of scanobjectnn, modelnet40, fewshot, shapenetpart, lvis, psb; see "
            "`pointdistill leaks --help`",
        ),
        (
            "verify a b",
            "there is no place for 'b'; a name that has spaces needs quotes; see `pointdistill verify --help`",
        ),
        (
            "plan --device cudda",
            "device must be one of auto, cpu, cuda, got 'cudda'; did you mean 'cuda'? (--device)",
        ),
    ],
)
def test_wrong_words_are_answered_in_the_user_s(line: str, message: str, run: Run) -> None:
    assert run(*line.split()) == (2, "", f"error: {message}\n")


def test_near_names() -> None:
    assert did_you_mean("Modelnet", ("modelnet40", "lvis")) == "; did you mean 'modelnet40'?"
    assert did_you_mean("scan", ("scanobjectnn",)) == "; did you mean 'scanobjectnn'?"
    assert did_you_mean("", ("a",)) == ""


def complete(line: str, folder: Path, shell: str = "bash") -> list[str]:
    """What the program offers for the last word of ``line``, in a process of its own."""
    words = line.split(" ")
    asked = {
        "_POINTDISTILL_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    program = "import sys; from pointdistill.cli import main; main([])"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program],
        env=os.environ | asked,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "torch" not in {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    return done.stdout.splitlines()


def test_the_tab_key_offers_commands_options_and_names(tmp_path: Path) -> None:
    for name in ("runs/first", "runs/empty", "data/own"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "runs/first/config.json").write_text("{}")
    (tmp_path / "data/own/corpus.json").write_text("{}")
    assert complete("pointdistill pre", tmp_path) == [
        "prepare-data",
        "pretrain",
        "predict",
        "preview",
    ]
    assert complete("pointdistill pretrain --reci", tmp_path) == ["--recipe"]
    assert complete("pointdistill embed x --encoder ru", tmp_path) == ["runs/first"]
    assert complete("pointdistill pretrain --recipe tiny-c", tmp_path, "zsh")
    assert complete("pointdistill evaluate scan", tmp_path, "fish") == ["scanobjectnn"]
    assert complete("pointdistill report ", tmp_path) == ["runs/first"]
    assert complete("pointdistill search x --encoder ru", tmp_path) == ["runs/first"]
    assert complete("pointdistill plan --gpu rtx409", tmp_path) == ["rtx4090"]


def test_the_tab_key_s_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pointdistill.cli import options

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/own").mkdir(parents=True)
    (tmp_path / "data/own/corpus.json").write_text("{}")
    assert options.complete_recipe("") == list(RECIPES)
    assert [card.name for card in CARDS] == list(options.GPUS)
    assert set(options.complete_source("")) == {info.name for info in SOURCES} | {"mixture", "psb"}
    assert options.complete_encoder("asym") == [
        name for name in PUBLISHED if name.startswith("asym")
    ]
    assert options.complete_corpus("da") == ["data/own"]
    assert options.complete_corpus(f"{tmp_path}/data/") == [f"{tmp_path}/data/own"]
    assert options.complete_run("nowhere/x") == []


def completed_by(shell: str, tmp_path: Path) -> str:
    """A shell's answer to the Tab key after "recipes tiny-cls-no-", with the script that the program prints."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    shown = subprocess.run(
        [sys.executable, "-m", "pointdistill", "--show-completion", shell],
        env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    program = tmp_path / "pointdistill"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pointdistill "$@"\n')
    program.chmod(0o755)
    (tmp_path / "script").write_text(shown)
    found = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    if shell == "zsh":
        return _typed_in_zsh(tmp_path, found)
    asked = {
        "bash": "source ./script; COMP_WORDS=(pointdistill recipes tiny-cls-no-); COMP_CWORD=2; "
        "_pointdistill_completion pointdistill; echo ${COMPREPLY[@]}",
        "fish": 'source ./script; complete -C "pointdistill recipes tiny-cls-no-"',
    }
    words = [shell, "-c", asked[shell]]
    done = subprocess.run(
        words, cwd=tmp_path, env=found, capture_output=True, text=True, check=True
    )
    return done.stdout


def _typed_in_zsh(folder: Path, environment: dict[str, str]) -> str:
    """What a zsh with its completion system shows on a terminal; it completes nothing without one."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execvpe("zsh", ["zsh", "-f", "-i"], environment | {"TERM": "xterm"})
    shown = ""
    try:
        os.write(
            terminal, b"autoload -U compinit && compinit -u -D && . ./script && echo rea''dy\n"
        )
        for awaited, keys in (
            ("ready", b"pointdistill recipes tiny-cls-no-\t"),
            ("tiny-cls-no-local-crops", b""),
        ):
            while awaited not in shown and select.select([terminal], [], [], 30)[0]:
                shown += os.read(terminal, 1 << 12).decode(errors="replace")
            os.write(terminal, keys)
    finally:
        os.close(terminal)  # hangs up, which ends the shell
        os.waitpid(child, 0)
    return shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_take_the_script(shell: str, tmp_path: Path) -> None:
    """Real shells load it and complete with it; those that are not on this machine are skipped."""
    names = [name for name in RECIPES if name.startswith("tiny-cls-no-")]
    shown = completed_by(shell, tmp_path)
    if shell == "zsh":
        assert all(name in shown for name in names)
    else:
        assert sorted(shown.split()) == sorted(names)


@pytest.mark.parametrize("columns", ["1", "7"])
def test_help_fits_no_terminal_of_a_few_columns_and_is_printed(
    columns: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    code, out, _ = run("embed", "--help")
    assert code == 0
    assert "--output" in out

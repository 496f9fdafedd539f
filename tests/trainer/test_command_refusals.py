"""What `dsvl-train eval` and `chat` refuse: options, folders and builds, each in a line."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("pycocoevalcap")

from shards import Build
from tests.support import evaluations, model_batches, small_blends
from tests.support.trainer_commands import run_command
from trainer.inference.generate import Generator

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build = pytest.fixture(scope="module")(evaluations.make_build)
exported = pytest.fixture(scope="module")(evaluations.make_exported)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--build", "none"], 1, "none: no manifest.json there"),
        ([], 2, "--build: missing"),
        (["--top-p", "2", "--temperature", "-1"], 2, "--temperature: got -1.0"),
        (["--dialogues", "x.json"], 2, "--out: missing"),
        (["--dialogues", "x.json", "--workers", "1"], 2, "--workers: has no effect with --dialogues"),
        (["--dialogues", "x.json", "--limit", "3"], 2, "--limit: has no effect with --dialogues"),
        (["--build", "y", "--leave-out"], 2, "--leave-out: has no effect without --dialogues"),
        (["--no-loss", "--no-answers"], 2, "nothing is left to measure"),
        (["--out", "out", "--no-answers"], 2, "--out and --no-answers: got both"),
        (["--out", "file"], 2, "file is not a writable folder"),
        (["--dialogues", "x.json", "--out", "file/below"], 2, "--out file/below: "),
        (["--dialogues", "x.json", "--out", "out"], 1, "x.json: cannot be read"),
    ],
)
def test_what_the_command_cannot_do_is_reported_with_the_right_exit_code(
    arguments: list[str],
    code: int,
    message: str,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    got, _, err = run_command(monkeypatch, capsys, "eval", "--model", exported, *arguments)
    assert message in err
    assert got == code


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "adapter_config.json",
            "is an adapter, whose weights are without those that it adapts; export the run without",
        ),
        ("config.json", "no model there that was trained here (dsvl.json is missing); a LLaVA of transformers is one"),
    ],
)
def test_folders_that_others_open_are_named_as_what_they_are(
    file: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / file).write_text("{}")
    code, _, err = run_command(monkeypatch, capsys, "chat", "--model", tmp_path)
    assert (code, f"{tmp_path}: {message}" in err) == (2, True)


def test_a_folder_without_a_model_and_another_build_are_reported(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_command(monkeypatch, capsys, "eval", "--model", tmp_path)
    assert (code, "no model there" in err) == (2, True)
    code, _, err = run_command(monkeypatch, capsys, "chat", "--model", tmp_path)
    assert (code, "no model there" in err) == (2, True)
    code, _, err = run_command(monkeypatch, capsys, "chat", "--model", exported, "--top-p", "0")
    assert (code, "--top-p: got 0.0" in err) == (2, True)
    blend = small_blends.chat_blend(tmp_path, [small_blends.chat_record(1)], template="vicuna", image={"size": 64})
    other = small_blends.build(blend).path
    code, out, err = run_command(monkeypatch, capsys, "eval", "--model", exported, "--build", other)
    assert code == 2
    assert out == ""
    assert "error: template: this build was compiled with vicuna" in err
    assert "error: image.size: this build's is 64" in err


@pytest.mark.parametrize(("batch", "advice"), [(4, "set --batch lower than 4"), (1, "use a GPU with more memory")])
def test_a_gpu_that_is_too_small_is_reported_with_what_helps(
    batch: int,
    advice: str,
    exported: Path,
    build: Build,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **options: object) -> list[list[int]]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nSee the docs")

    monkeypatch.setattr(Generator, "batch", full)
    where = ("eval", "--model", exported, "--build", build.store.location)
    code, _, err = run_command(monkeypatch, capsys, *where, "--no-loss", "--batch", batch)
    assert code == 1
    assert f"error: the GPU's memory ran out (CUDA out of memory. Tried to allocate 2.00 GiB); {advice}\n" in err


def test_a_build_for_chat_with_an_exported_model_is_refused(
    exported: Path, build: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_command(monkeypatch, capsys, "chat", "--model", exported, "--build", build.store.location)
    assert (code, "is an exported model, which needs no build; remove the option" in err) == (2, True), err

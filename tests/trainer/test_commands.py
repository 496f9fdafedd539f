"""`dsvl-train eval` and `chat` as they are called: files, exit codes, what goes to stdout and what to stderr."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.paths import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("pycocoevalcap")

import shards
import trainer
from shards import Build
from tests.support import evaluations, exports, model_batches, small_blends
from tests.support.evaluations import ignore
from tests.support.talks import PHOTOS
from tests.support.tiny_models import SIDE
from tests.support.trainer_commands import run_command
from tests.support.waiting import LIMIT_S
from trainer.config.run import TrainConfig
from trainer.evaluation.dialogues import Dialogue, DialogueImage, Round, read_dialogues
from trainer.evaluation.runner import hold_dialogues, load_images
from trainer.export.export import export_model
from trainer.inference.generate import Generator, Sampling
from trainer.model.vision_chat import VisionChatModel
from trainer.training.assemble import assemble

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build = pytest.fixture(scope="module")(evaluations.make_build)


def random_model(build: Build) -> tuple[VisionChatModel, TrainConfig]:
    encoder = {"kind": "tiny", "config": {"image_size": SIDE, "patch_size": 16}}
    config = exports.config_of(build, attention="mmca", encoder=encoder, projector={"kind": "linear"})
    return assemble(config, build.manifest.facts()).model, config


@pytest.fixture(scope="module")
def exported(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with MMCA, exported."""
    model, config = random_model(build)
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_model(model, config, build, folder, step=7)
    return folder


def test_the_command_measures_an_exported_model_and_writes_the_report(
    exported: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--limit", 2, "--max-new-tokens", 4, "--workers", 0, "--out", tmp_path / "out")
    where = ("eval", "--model", exported, "--build", build.store.location)
    code, out, err = run_command(monkeypatch, capsys, *where, *few, "--json")
    assert code == 0, err
    measures = json.loads(out)
    assert measures["build"] == build.manifest.hash
    assert measures["step"] == 7
    assert measures["loss"]["datasets"].keys() == set(build.datasets)
    assert {row["dataset"]: row["kind"] for row in measures["scores"]} == {
        "vqa": "vqa",
        "captions": "caption",
        "mine": "text",
    }
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(row["num_answers"] for row in measures["scores"])
    page = (tmp_path / "out" / "results.html").read_text(encoding="utf-8")
    assert "data:image/jpeg" in page
    assert f"<dt>held-out loss</dt><dd>{measures['loss']['all']:.4f}</dd>" in page
    code, out, _ = run_command(monkeypatch, capsys, *where, "--no-answers", "--workers", 0)
    assert code == 0
    assert f"held-out loss {measures['loss']['all']:.4f}" in out
    code, out, _ = run_command(monkeypatch, capsys, *where, "--no-loss", *few[:4])
    assert code == 0
    assert "vqa_accuracy" in out
    assert "loss" not in out


def test_images_are_read_once_and_known_in_the_next_run(
    exported: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("eval", "--model", exported, "--build", build.store.location, "--no-loss", "--max-new-tokens", 2)
    folder = ("--cache-dir", tmp_path / "images")
    _, out, _ = run_command(monkeypatch, capsys, *command, "--json", "--cache-gb", 0)
    nothing_kept = json.loads(out)
    _, out, err = run_command(monkeypatch, capsys, *command, "--json", *folder)
    first = json.loads(out)
    assert first["scores"] == nothing_kept["scores"], err
    assert first["images"]["read"] < nothing_kept["images"]["read"]
    assert first["images"]["read"] == len(list((tmp_path / "images").iterdir()))
    asked = sum(first["images"].values())
    assert asked == sum(nothing_kept["images"].values()), "all are counted, once for each question"
    _, out, _ = run_command(monkeypatch, capsys, *command, "--out", tmp_path / "out", *folder)
    assert f"0 images read, {asked} known from earlier questions" in out
    assert f"0 images read, {asked} known" in (tmp_path / "out" / "results.html").read_text(encoding="utf-8")
    (tmp_path / "file").touch()
    code, _, err = run_command(monkeypatch, capsys, *command, "--cache-dir", tmp_path / "file")
    assert code == 1
    assert "file: images cannot be kept there: File exists" in err


def test_the_command_holds_dialogues_of_a_file(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "talk.json"
    two = f"./eval/{PHOTOS[1].name} ./eval/{PHOTOS[2].name}"
    file.write_text(
        json.dumps(
            {"a": [["What?", f"eval/{PHOTOS[0].name}"], ["Older?", two], ["Why?"]], "b": [["Gone?", "eval/x.jpg"]]}
        ),
        encoding="utf-8",
    )
    out = tmp_path / "out"
    command: list[object] = [
        "eval",
        "--model",
        exported,
        "--dialogues",
        file,
        "--images",
        PHOTOS[0].parent,
        "--prefix",
        "eval",
    ]
    code, _, err = run_command(monkeypatch, capsys, *command, "--out", out)
    assert code == 1
    assert "dialogue 'b': no file eval/x.jpg" in err
    assert not out.exists()
    code, _, err = run_command(monkeypatch, capsys, *command[:5], "--images", tmp_path, "--out", out, "--leave-out")
    assert code == 1
    assert "none of its 2 dialogues has all of its images" in err
    code, printed, err = run_command(
        monkeypatch, capsys, *command, "--out", out, "--leave-out", "--json", "--max-new-tokens", 3
    )
    assert code == 0, err
    assert json.loads(printed) == {
        "dialogues": 1,
        "answers": 3,
        "cut": [],
        "left_out": [{"id": "b", "missing": ["eval/x.jpg"]}],
        "images": {"read": 3, "known": 4},
        "out": str(out),
    }
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["dialogue"], row["round"], len(row["images"])) for row in rows] == [
        ("a", 1, 1),
        ("a", 2, 2),
        ("a", 3, 0),
    ]
    assert (out / "results.html").is_file()
    assert read_dialogues(file, root=PHOTOS[0].parent, prefix="eval", incomplete="leave_out").complete[0].id == "a"


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


def test_a_run_whose_build_is_gone_names_the_option_that_says_where_it_is(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, config = random_model(build)
    exports.write_checkpoint(tmp_path / "run", model, replace(config, build=str(tmp_path / "gone")), build)
    out = tmp_path / "out"
    for command, options in (("eval", ()), ("chat", ()), ("export", ("--out", out))):
        code, _, err = run_command(monkeypatch, capsys, command, "--model", tmp_path / "run", *options)
        assert (code, "if it was moved, give its new path with --build\n" in err) == (2, True), err
    again = ("--build", build.store.location, "--no-answers", "--workers", 0)
    code, stdout, err = run_command(monkeypatch, capsys, "eval", "--model", tmp_path / "run", *again)
    assert (code, "held-out loss" in stdout) == (0, True), err


def test_eval_of_a_run_measures_on_another_build_if_that_is_given(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, config = random_model(build)
    exports.write_checkpoint(tmp_path / "run", model, config, build)
    blend = small_blends.chat_blend(
        tmp_path,
        [small_blends.chat_record(number) for number in range(12)],
        image_tokens=build.manifest.config.image_tokens,
        limits={"max_length": 512},
        image={"size": SIDE},
        split={"eval": 0.5},
    )
    other = shards.open(small_blends.build(blend).path)
    assert other.manifest.hash != build.manifest.hash
    where = ("eval", "--model", tmp_path / "run", "--no-answers", "--workers", 0, "--json")
    for options, measured in (((), build), (("--build", other.store.location), other)):
        code, stdout, err = run_command(monkeypatch, capsys, *where, *options)
        assert (code, json.loads(stdout)["build"]) == (0, measured.manifest.hash), err


def test_a_build_for_chat_with_an_exported_model_is_refused(
    exported: Path, build: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_command(monkeypatch, capsys, "chat", "--model", exported, "--build", build.store.location)
    assert (code, "is an exported model, which needs no build; remove the option" in err) == (2, True), err


@pytest.mark.slow
def test_piped_lines_are_answered_on_stdout_and_all_else_is_on_stderr(exported: Path) -> None:
    lines = [
        f"/image {PHOTOS[0]} {PHOTOS[1]}".encode(),
        b"Which of the two is older?",
        b"/image none.jpg",
        "no UTF-8: ä".encode("latin-1"),
        b"",
        b"Why?",
        b"/quit",
        b"never asked",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "trainer.cli", "chat", "--model", str(exported), "--max-new-tokens", "5"],
        input=b"\n".join(lines),
        capture_output=True,
        timeout=LIMIT_S,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
    )
    stderr = done.stderr.decode()
    assert done.returncode == 1, stderr  # nobody is there to read that two lines could not be done
    assert "none.jpg: cannot be read" in stderr
    assert "not asked: text holds half of a surrogate pair" in stderr
    images = tuple(DialogueImage(name=photo.name, path=photo) for photo in PHOTOS[:2])
    rounds = (Round(question="Which of the two is older?", images=images), Round(question="Why?"))
    talk = [Dialogue(id="piped", rounds=rounds)]
    record = trainer.load(exported)
    sampling = Sampling(max_new_tokens=5)
    held = hold_dialogues(record, talk, load_images(record, talk), sampling, batch=1, advance=ignore)
    said = [line.strip() for line in done.stdout.decode().splitlines()]
    assert said == [round_.answer for round_ in held.dialogues[0].rounds]

"""`dsvl-train eval` and `chat` as they are called: files, exit codes, what goes to stdout and what to stderr."""

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

pytest.importorskip("torch")
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
from trainer.evaluation.dialogues import Dialogue, DialogueImage, Round, read_dialogues
from trainer.evaluation.runner import hold_dialogues, load_images
from trainer.inference.generate import Sampling

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build = pytest.fixture(scope="module")(evaluations.make_build)
exported = pytest.fixture(scope="module")(evaluations.make_exported)


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


def test_exchanged_images_are_known_from_the_samples_that_they_are_taken_from(
    exported: Path, build: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (
        "eval",
        "--model",
        exported,
        "--build",
        build.store.location,
        "--no-loss",
        "--max-new-tokens",
        2,
        "--json",
    )
    _, out, _ = run_command(monkeypatch, capsys, *command)
    right = json.loads(out)["images"]
    _, out, err = run_command(monkeypatch, capsys, *command, "--blind")
    blind = json.loads(out)["images"]
    assert blind["read"] == right["read"] + 1, f"the blank one: {err}"
    assert blind["known"] > right["known"]


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


def test_a_run_whose_build_is_gone_names_the_option_that_says_where_it_is(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, config = evaluations.random_model(build)
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
    model, config = evaluations.random_model(build)
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

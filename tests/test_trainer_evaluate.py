"""Held-out loss and answers are those of the build's own samples; what cannot be measured is told before."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("pycocoevalcap")

import shards
import small_blends
import train_runs
import trainer
from dst.errors import ConfigError
from exports import config_of
from shards import Build
from shards.loader import Loader
from tiny_models import IMAGE_TOKENS, SIDE, Loaded, loaded
from trainer import cli
from trainer.assemble import assemble
from trainer.chat import Chat
from trainer.dialogues import Dialogue, DialogueImage, Round, read_dialogues
from trainer.errors import TrainError
from trainer.evaluate import (
    answer_held_out,
    check_build,
    held_out_loss,
    held_out_questions,
    hold_dialogues,
    see_dialogues,
)
from trainer.export import export_model
from trainer.generate import Generator, Sampling
from trainer.held_out import Question, answer_spans, prompt_for, questions_of
from trainer.prompt_reader import Prompt

PHOTOS = sorted((small_blends.SAMPLES / "coco/train2017").glob("*.jpg"))
FEW = Sampling(max_new_tokens=5)


def ignore(amount: int) -> None:
    """Nobody wants to hear of progress."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are tiny: waiting for a second core takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def record() -> Loaded:
    return loaded()


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Questions with ten answers each, captions of which two are joined, and chat of two rounds; half is held out."""
    folder = tmp_path_factory.mktemp("build")
    names = small_blends.write_images(folder / "mine", 12)
    small_blends.write_chat(
        folder / "mine",
        [small_blends.chat_record(number, images=names[number : number + 1], rounds=2) for number in range(12)],
    )
    root = str(small_blends.SAMPLES)
    blend = small_blends.write_blend(
        folder / "blend.yaml",
        [
            {"name": "vqa", "adapter": "vqa_v2", "root": root},
            {"name": "captions", "adapter": "coco_caption", "root": root, "concat": 2},
            {"name": "mine", "adapter": "chat", "root": "mine"},
        ],
        image_tokens=IMAGE_TOKENS,
        limits={"max_length": 512},
        image={"size": SIDE, "store": "original"},
        split={"eval": 0.5},
    )
    return shards.open(small_blends.build(blend).path)


def test_the_build_of_these_tests_has_all_kinds_held_out(build: Build, record: Loaded) -> None:
    assert all(build["eval"].sizes.values())
    assert check_build(record, build.manifest.content) == []
    questions = questions_of(build, record.chat_tokenizer.tokenizer)
    assert {question.kind for question in questions} == {"vqa", "caption", "text"}
    assert any(question.number for question in questions if question.dataset == "captions")


def test_the_loss_is_that_of_each_sample_alone_weighted_by_its_trained_tokens(build: Build, record: Loaded) -> None:
    told: list[int] = []
    found = held_out_loss(record, build, rows=3, workers=0, advance=told.append)
    sums: dict[str, list[float]] = {name: [0.0, 0.0] for name in build.datasets}
    for batch in Loader(build, split="eval", batch_size=1, max_length=512, packed=False):
        with torch.no_grad():
            logits = record.model.logits(
                batch.input_ids, batch.position_ids, batch.segment_ids, batch.images, batch.image_slots
            )[:, :-1]
        targets = batch.labels[:, 1:]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        ((owner, _),) = batch.samples[0]
        sums[owner][0] += float(losses.sum())
        sums[owner][1] += int((targets != -100).sum())
    assert found.datasets == pytest.approx({name: total / tokens for name, (total, tokens) in sums.items()}, rel=1e-4)
    totals = np.array(list(sums.values())).sum(0)
    assert found.loss == pytest.approx(totals[0] / totals[1], rel=1e-4)
    assert sum(told) == len(build["eval"])


def test_a_question_s_prompt_is_what_training_sees_before_the_answer(build: Build, record: Loaded) -> None:
    tokenizer = record.chat_tokenizer.tokenizer
    questions = iter(questions_of(build, tokenizer))
    for batch in Loader(build, split="eval", batch_size=1, max_length=512, packed=False):
        ids, labels = batch.input_ids[0].numpy(), batch.labels[0].numpy()
        for start, end in answer_spans(labels):
            question = next(questions)
            prompt = prompt_for(build, question, record.geometry, tokenizer.image_id)
            assert batch.samples[0] == ((question.dataset, question.key),)
            assert prompt.ids.tolist() == ids[:start].tolist()
            assert question.positions == start
            assert prompt.end_id == ids[end - 1]
            assert torch.equal(prompt.images, batch.images[: len(prompt.slots)])
            answer = tokenizer.decode(ids[start : end - 1].tolist()).strip()
            assert answer in question.references
    assert next(questions, None) is None


def test_spans_are_the_runs_of_trained_labels() -> None:
    assert answer_spans(np.array([-100, 5, 6, -100, 7, -100, 8], np.int32)) == [(1, 3), (4, 5), (6, 7)]
    assert answer_spans(np.array([5, -100], np.int32)) == [(0, 1)]
    assert answer_spans(np.array([-100], np.int32)) == []


def test_references_are_all_that_the_datasets_know_of_each_answer(build: Build, record: Loaded) -> None:
    for question in questions_of(build, record.chat_tokenizer.tokenizer):
        known = build["eval"][question.index].metadata.get("references")
        if question.dataset == "mine":
            assert known is None
            assert len(question.references) == 1
        else:
            assert known is not None
            assert list(question.references) == known[question.number]


def test_a_limit_takes_samples_of_every_dataset_evenly_spread(build: Build, record: Loaded) -> None:
    tokenizer = record.chat_tokenizer.tokenizer
    whole, some = questions_of(build, tokenizer), questions_of(build, tokenizer, limit=2)
    assert {question.dataset for question in some} == set(build.datasets)
    for name, size in build["eval"].sizes.items():
        places = sorted({question.index for question in whole if question.dataset == name})
        taken = sorted({question.index for question in some if question.dataset == name})
        assert taken == [places[number * size // min(2, size)] for number in range(min(2, size))]
    assert questions_of(build, tokenizer, limit=10**6) == whole


def test_answers_are_those_of_each_question_alone_whatever_shares_their_batch(build: Build, record: Loaded) -> None:
    questions = held_out_questions(record, build, limit=3)
    told: list[int] = []
    many = answer_held_out(record, build, questions, FEW, batch=7, advance=told.append)
    one = answer_held_out(record, build, questions, FEW, batch=1, advance=ignore)
    assert many == one
    assert sum(told) == len(questions)
    sizes = {dialogue.id: len(dialogue.rounds) for dialogue in many.dialogues}
    assert sum(sizes.values()) == len(questions)
    assert {row.dataset for row in many.scores.datasets} == set(build.datasets)


def test_right_answers_get_full_marks_and_wrong_ones_none(
    build: Build, record: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = held_out_questions(record, build, limit=None)
    best = {
        tuple(prompt_for(build, one, record.geometry, record.chat_tokenizer.tokenizer.image_id).ids): _learnt(
            build, one
        )
        for one in questions
    }

    def right(self: Generator, prompts: Sequence[Prompt], sampling: Sampling, **options: Any) -> list[list[int]]:
        return [best[tuple(prompt.ids)] for prompt in prompts]

    monkeypatch.setattr(Generator, "batch", right)
    scored = answer_held_out(record, build, questions, FEW, batch=4, advance=ignore)
    metrics = {row.dataset: row.metrics for row in scored.scores.datasets}
    assert metrics["mine"] == {"exact_match": 1.0}
    assert metrics["vqa"]["exact_match"] == 1.0
    assert metrics["captions"]["bleu_4"] > 0.95
    (mine, *_) = [dialogue for dialogue in scored.dialogues if dialogue.dataset == "mine"]
    assert [round_.answer for round_ in mine.rounds] == [round_.references[0] for round_ in mine.rounds]
    assert "Question 1" in mine.rounds[1].question
    assert [len(round_.pictures) for round_ in mine.rounds] == [1, 0]
    monkeypatch.setattr(Generator, "batch", lambda self, prompts, *_, **options: [[1] for _ in prompts])
    nothing = answer_held_out(record, build, questions, FEW, batch=4, advance=ignore)
    assert all(row.metrics.get("exact_match", 0.0) == 0.0 for row in nothing.scores.datasets)


def _learnt(build: Build, question: Question) -> list[int]:
    sample = build["eval"][question.index]
    (end,) = [end for start, end in answer_spans(sample.labels) if start == question.start]
    ids: list[int] = sample.ids[question.start : end].tolist()
    return ids


def test_a_build_that_the_model_was_not_made_for_is_told_with_all_that_differs(record: Loaded, tmp_path: Path) -> None:
    blend = small_blends.chat_blend(
        tmp_path,
        [small_blends.chat_record(1)],
        template="vicuna",
        add_tokens=["<extra>"],
        image_tokens=9,
        limits={"max_length": 9000},
        image={"size": 48, "fit": "pad"},
    )
    content = shards.open(small_blends.build(blend).path).manifest.content
    problems = check_build(record, content)
    beginnings = ("tokenizer: ", "template: ", "image.size: ", "image.fit: ", "image_tokens: ", "limits.max_length: ")
    assert [problem.startswith(start) for problem, start in zip(problems, beginnings, strict=False)] == [True] * 6
    assert "no held-out samples" in problems[6]
    assert len(problems) == 7
    assert "this build's is 48 but the model was made for 32; rebuild with image: {size: 32}" in problems[2]


def dialogues() -> list[Dialogue]:
    images = [DialogueImage(name=photo.name, path=photo) for photo in PHOTOS[:3]]
    return [
        Dialogue(
            id="buses",
            rounds=(
                Round(question="What is it?", images=(images[0],)),
                Round(question="And these, are they older?", images=(images[1], images[2])),
                Round(question="Why?"),
            ),
        ),
        Dialogue(id="words", rounds=(Round(question="Is </s> a word?"), Round(question="And <image>?"))),
        Dialogue(id="short", rounds=(Round(question="Look.", images=(images[1],)),)),
    ]


@pytest.mark.parametrize("sampling", [FEW, replace(FEW, temperature=1.2, seed=3)], ids=["greedy", "drawn"])
def test_dialogues_are_answered_the_same_in_any_batch(record: Loaded, sampling: Sampling) -> None:
    seen = see_dialogues(record, dialogues())
    told: list[int] = []
    held = hold_dialogues(record, dialogues(), seen, sampling, batch=3, advance=told.append)
    assert held == hold_dialogues(record, dialogues(), seen, sampling, batch=1, advance=ignore)
    assert sum(told) == 6
    assert [len(dialogue.rounds) for dialogue in held.dialogues] == [3, 2, 1]
    assert held.cut == ()


def test_greedy_dialogues_are_answered_as_chat_answers_them(record: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    held = hold_dialogues(record, dialogues(), see_dialogues(record, dialogues()), FEW, batch=2, advance=ignore)
    for dialogue, answered in zip(dialogues(), held.dialogues, strict=True):
        talk = Chat(record, FEW)
        for round_ in dialogue.rounds:
            if round_.images:
                talk.line("/image " + " ".join(str(image.path) for image in round_.images))
            talk.line(round_.question)
        assert [exchange.answer for exchange in talk.exchanges] == [round_.answer for round_ in answered.rounds]


def test_a_dialogue_that_grows_too_long_ends_there_and_the_others_go_on() -> None:
    tight = loaded(max_position_embeddings=116)
    told: list[int] = []
    held = hold_dialogues(tight, dialogues(), see_dialogues(tight, dialogues()), FEW, batch=3, advance=told.append)
    assert [len(dialogue.rounds) for dialogue in held.dialogues] == [1, 2, 1]
    (cut,) = held.cut
    assert (cut.id, cut.round) == ("buses", 2)
    assert cut.positions >= 116
    assert sum(told) == 6


def test_pictures_and_questions_that_cannot_be_used_are_told_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    broken = DialogueImage(name="broken.jpg", path=tmp_path / "broken.jpg")
    bad = [
        Dialogue(id="a", rounds=(Round(question="What?", images=(broken,)),)),
        Dialogue(id="b", rounds=(Round(question="Only words"),)),
    ]
    with pytest.raises(TrainError) as error:
        see_dialogues(loaded(template="plain"), bad)
    assert "dialogue 'a': " in str(error.value)
    assert "broken.jpg: cannot be shown" in str(error.value)
    assert "dialogue 'b': template plain" in str(error.value)


@pytest.fixture(scope="module")
def exported(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with MMCA, exported."""
    encoder = {"kind": "tiny", "config": {"image_size": SIDE, "patch_size": 16}}
    config = config_of(build, attention="mmca", encoder=encoder, projector={"kind": "linear"})
    model = assemble(config, build.manifest.content).model
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_model(model, config, build, folder, step=7)
    return folder


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """`dsvl-train` in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["dsvl-train", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as error:
        code = int(error.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_measures_an_exported_model_and_writes_the_report(
    exported: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--limit", 2, "--max-new-tokens", 4, "--workers", 0, "--out", tmp_path / "out")
    where = ("eval", "--model", exported, "--build", build.store.location)
    code, out, err = run(monkeypatch, capsys, *where, *few, "--json")
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
    assert "data:image/jpeg" in (tmp_path / "out" / "results.html").read_text(encoding="utf-8")
    code, out, _ = run(monkeypatch, capsys, *where, "--no-answers", "--workers", 0)
    assert code == 0
    assert f"held-out loss {measures['loss']['all']:.4f}" in out
    code, out, _ = run(monkeypatch, capsys, *where, "--no-loss", *few[:4])
    assert code == 0
    assert "vqa_accuracy" in out
    assert "loss" not in out


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
    code, _, err = run(monkeypatch, capsys, *command, "--out", out)
    assert code == 1
    assert "dialogue 'b': no file eval/x.jpg" in err
    assert not out.exists()
    code, _, err = run(monkeypatch, capsys, *command[:5], "--images", tmp_path, "--out", out, "--leave-out")
    assert code == 1
    assert "none of its 2 dialogues has all of its pictures" in err
    code, printed, err = run(
        monkeypatch, capsys, *command, "--out", out, "--leave-out", "--json", "--max-new-tokens", 3
    )
    assert code == 0, err
    assert json.loads(printed) == {
        "dialogues": 1,
        "answers": 3,
        "cut": [],
        "left_out": [{"id": "b", "missing": ["eval/x.jpg"]}],
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
    ("arguments", "code", "told"),
    [
        (["--build", "none"], 1, "none: no manifest.json there"),
        ([], 2, "--build: missing"),
        (["--top-p", "2", "--temperature", "-1"], 2, "--temperature: got -1.0"),
        (["--dialogues", "x.json"], 2, "--out: missing"),
        (["--dialogues", "x.json", "--build", "y"], 2, "got both"),
        (["--no-loss", "--no-answers"], 2, "nothing is left to measure"),
        (["--dialogues", "x.json", "--out", "out"], 1, "x.json: cannot be read"),
    ],
)
def test_what_the_command_cannot_do_is_told_with_the_right_exit_code(
    arguments: list[str],
    code: int,
    told: str,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    got, _, err = run(monkeypatch, capsys, "eval", "--model", exported, *arguments)
    assert told in err
    assert got == code


def test_a_folder_without_a_model_and_another_build_are_told(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(monkeypatch, capsys, "eval", "--model", tmp_path)
    assert (code, "no model there" in err) == (2, True)
    code, _, err = run(monkeypatch, capsys, "chat", "--model", tmp_path)
    assert (code, "no model there" in err) == (2, True)
    code, _, err = run(monkeypatch, capsys, "chat", "--model", exported, "--top-p", "0")
    assert (code, "--top-p: got 0.0" in err) == (2, True)
    blend = small_blends.chat_blend(tmp_path, [small_blends.chat_record(1)], template="vicuna", image={"size": 64})
    other = small_blends.build(blend).path
    code, out, err = run(monkeypatch, capsys, "eval", "--model", exported, "--build", other)
    assert code == 2
    assert out == ""
    assert "error: template: this build was compiled with vicuna" in err
    assert "error: image.size: this build's is 64" in err


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
        timeout=120,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
    )
    told = done.stderr.decode()
    assert done.returncode == 0, told
    assert "none.jpg: cannot be read" in told
    assert "not asked: text holds half of a surrogate pair" in told
    images = tuple(DialogueImage(name=photo.name, path=photo) for photo in PHOTOS[:2])
    rounds = (Round(question="Which of the two is older?", images=images), Round(question="Why?"))
    talk = [Dialogue(id="piped", rounds=rounds)]
    record = trainer.load(exported)
    sampling = Sampling(max_new_tokens=5)
    held = hold_dialogues(record, talk, see_dialogues(record, talk), sampling, batch=1, advance=ignore)
    said = [line.strip() for line in done.stdout.decode().splitlines()]
    assert said == [round_.answer for round_ in held.dialogues[0].rounds]


def test_the_packages_that_scoring_needs_are_missed_before_anything_is_answered(
    build: Build, record: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.evaluate.missing_packages", lambda kinds: ["missing"] if "caption" in kinds else [])
    with pytest.raises(ConfigError, match="missing"):
        held_out_questions(record, build, limit=1)


@pytest.mark.slow
def test_a_run_a_checkpoint_and_an_export_are_measured_alike_and_as_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = train_runs.compiled(tmp_path / "data")
    config = train_runs.config_file(
        tmp_path,
        build,
        schedule={"steps": 4},
        evaluation={"every": 4},
        train={"decoder": None, "decoder_lora": {"rank": 4}, "lora": 1e-2},
    )
    train_runs.train(config)
    out = tmp_path / "out"
    (told,) = [entry for entry in train_runs.journal(out) if entry["kind"] == "eval"]
    measured = []
    assert run(monkeypatch, capsys, "export", "--checkpoint", out, "--out", tmp_path / "exported")[0] == 0
    for model in (out, out / "checkpoints" / "step-00000004", tmp_path / "exported"):
        where = ["--build", build] if model.name == "exported" else []
        command = ["eval", "--model", model, *where, "--limit", 2, "--max-new-tokens", 3, "--workers", 0]
        code, printed, err = run(monkeypatch, capsys, *command, "--out", tmp_path / "report", "--json")
        assert code == 0, err
        lines = (tmp_path / "report" / "results.jsonl").read_text(encoding="utf-8").splitlines()
        answers = [json.loads(line)["answer"] for line in lines]
        measured.append((json.loads(printed)["loss"], json.loads(printed)["scores"], answers))
    assert measured[0] == measured[1]
    assert measured[0][1:] == measured[2][1:]
    for loss, _, _ in measured:
        assert loss["all"] == pytest.approx(told["loss"], rel=1e-4)
        assert loss["datasets"] == pytest.approx(told["datasets"], rel=1e-4)

"""Loss and answers do not depend on batches; what cannot be measured is reported before."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("pycocoevalcap")

import shards
from dst.errors import ConfigError
from shards import Build
from shards.loader import Loader
from tests.support import evaluations, model_batches, small_blends
from tests.support.evaluations import FEW, dialogues, ignore
from tests.support.tiny_models import Loaded, loaded
from trainer.errors import TrainError
from trainer.evaluation.compatibility import check_model_fits_build
from trainer.evaluation.dialogues import Dialogue, DialogueImage, Round
from trainer.evaluation.held_out import Question, answer_spans, prompt_for
from trainer.evaluation.runner import (
    answer_held_out,
    held_out_loss,
    held_out_questions,
    hold_dialogues,
    load_images,
)
from trainer.inference.cached_decoder import Prompt
from trainer.inference.chat import Chat
from trainer.inference.generate import Generator, Sampling

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
record = pytest.fixture(scope="module")(loaded)
build = pytest.fixture(scope="module")(evaluations.make_build)


def test_the_loss_is_that_of_each_sample_alone_weighted_by_its_trained_tokens(build: Build, record: Loaded) -> None:
    advances: list[int] = []
    actual = held_out_loss(record, build, sequences=3, workers=0, advance=advances.append)
    sums: dict[str, list[float]] = {name: [0.0, 0.0] for name in build.datasets}
    for batch in Loader(build, split="eval", batch_size=1, max_length=512, packed=False):
        with torch.no_grad():
            logits = record.model.logits(batch)[:, :-1]
        targets = batch.labels[:, 1:]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        ((owner, _),) = batch.samples[0]
        sums[owner][0] += float(losses.sum())
        sums[owner][1] += int((targets != -100).sum())
    assert actual.datasets == pytest.approx({name: total / tokens for name, (total, tokens) in sums.items()}, rel=1e-4)
    totals = np.array(list(sums.values())).sum(0)
    assert actual.loss == pytest.approx(totals[0] / totals[1], rel=1e-4)
    assert sum(advances) == len(build["eval"])


def test_answers_are_those_of_each_question_alone_whatever_shares_their_batch(build: Build, record: Loaded) -> None:
    questions = held_out_questions(record, build, limit=3)
    advances: list[int] = []
    many = answer_held_out(record, build, questions, FEW, batch=7, advance=advances.append)
    first = answer_held_out(record, build, questions, FEW, batch=1, advance=ignore)
    assert many == first
    assert sum(advances) == len(questions)
    sizes = {dialogue.id: len(dialogue.rounds) for dialogue in many.dialogues}
    assert sum(sizes.values()) == len(questions)
    assert {row.dataset for row in many.scores.datasets} == set(build.datasets)


def test_right_answers_get_full_marks_and_wrong_ones_none(
    build: Build, record: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = held_out_questions(record, build, limit=None)
    image_id = record.chat_tokenizer.tokenizer.image_id
    best = {_key(prompt_for(build, one, record.geometry, image_id)): _trained(build, one) for one in questions}

    def right(self: Generator, prompts: Sequence[Prompt], sampling: Sampling, **options: Any) -> list[list[int]]:
        return [best[_key(prompt)] for prompt in prompts]

    monkeypatch.setattr(Generator, "batch", right)
    scored = answer_held_out(record, build, questions, FEW, batch=4, advance=ignore)
    metrics = {row.dataset: row.metrics for row in scored.scores.datasets}
    assert metrics["mine"] == {"exact_match": 1.0}
    assert metrics["vqa"]["exact_match"] == 1.0
    assert metrics["captions"]["bleu_4"] > 0.95
    (mine, *_) = [dialogue for dialogue in scored.dialogues if dialogue.dataset == "mine"]
    assert [round_.answer for round_ in mine.rounds] == [round_.references[0] for round_ in mine.rounds]
    assert "Question 1" in mine.rounds[1].question
    assert [len(round_.images) for round_ in mine.rounds] == [1, 0]
    monkeypatch.setattr(Generator, "batch", lambda self, prompts, *_, **options: [[1] for _ in prompts])
    nothing = answer_held_out(record, build, questions, FEW, batch=4, advance=ignore)
    assert all(row.metrics.get("exact_match", 0.0) == 0.0 for row in nothing.scores.datasets)


def _key(prompt: Prompt) -> tuple[bytes, bytes]:
    """Tokens and pixels: the same question may be asked about several images."""
    return prompt.ids.tobytes(), prompt.images.numpy().tobytes()


def _trained(build: Build, question: Question) -> list[int]:
    sample = build["eval"][question.index]
    (end,) = [end for start, end in answer_spans(sample.labels) if start == question.start]
    ids: list[int] = sample.ids[question.start : end].tolist()
    return ids


def test_a_build_that_the_model_was_not_made_for_is_reported_with_all_that_differs(
    record: Loaded, tmp_path: Path
) -> None:
    blend = small_blends.chat_blend(
        tmp_path,
        [small_blends.chat_record(1)],
        template="vicuna",
        add_tokens=["<extra>"],
        image_tokens=9,
        limits={"max_length": 9000},
        image={"size": 48, "fit": "pad"},
    )
    problems = check_model_fits_build(record, shards.open(small_blends.build(blend).path).manifest)
    beginnings = ("tokenizer: ", "template: ", "image.size: ", "image.fit: ", "image_tokens: ", "limits.max_length: ")
    assert [problem.startswith(start) for problem, start in zip(problems, beginnings, strict=False)] == [True] * 6
    assert "no held-out samples" in problems[6]
    assert len(problems) == 7
    assert "this build's is 48 but the model was made for 32; rebuild with image: {size: 32}" in problems[2]


@pytest.mark.parametrize("sampling", [FEW, replace(FEW, temperature=1.2, seed=3)], ids=["greedy", "drawn"])
def test_dialogues_are_answered_the_same_in_any_batch(record: Loaded, sampling: Sampling) -> None:
    seen = load_images(record, dialogues())
    advances: list[int] = []
    held = hold_dialogues(record, dialogues(), seen, sampling, batch=3, advance=advances.append)
    assert held == hold_dialogues(record, dialogues(), seen, sampling, batch=1, advance=ignore)
    assert sum(advances) == 6
    assert [len(dialogue.rounds) for dialogue in held.dialogues] == [3, 2, 1]
    assert held.cut == ()


def test_greedy_dialogues_are_answered_as_chat_answers_them(record: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    held = hold_dialogues(record, dialogues(), load_images(record, dialogues()), FEW, batch=2, advance=ignore)
    for dialogue, answered in zip(dialogues(), held.dialogues, strict=True):
        talk = Chat(record, FEW)
        for round_ in dialogue.rounds:
            if round_.images:
                talk.line("/image " + " ".join(str(image.path) for image in round_.images))
            talk.line(round_.question)
        assert [exchange.answer for exchange in talk.exchanges] == [round_.answer for round_ in answered.rounds]


def test_a_dialogue_that_grows_too_long_ends_there_and_the_others_continue() -> None:
    tight = loaded(max_position_embeddings=116)
    advances: list[int] = []
    held = hold_dialogues(tight, dialogues(), load_images(tight, dialogues()), FEW, batch=3, advance=advances.append)
    assert [len(dialogue.rounds) for dialogue in held.dialogues] == [1, 2, 1]
    (cut,) = held.cut
    assert (cut.id, cut.round) == ("buses", 2)
    assert cut.positions >= 116
    assert sum(advances) == 6


def test_images_and_questions_that_cannot_be_used_are_reported_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    broken = DialogueImage(name="broken.jpg", path=tmp_path / "broken.jpg")
    bad = [
        Dialogue(id="a", rounds=(Round(question="What?", images=(broken,)),)),
        Dialogue(id="b", rounds=(Round(question="Only words"),)),
    ]
    with pytest.raises(TrainError) as error:
        load_images(loaded(template="plain"), bad)
    assert "dialogue 'a': " in str(error.value)
    assert "broken.jpg: cannot be decoded" in str(error.value)
    assert "dialogue 'b': template plain" in str(error.value)


def test_the_packages_that_scoring_needs_are_missed_before_anything_is_answered(
    build: Build, record: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "trainer.evaluation.runner.missing_packages", lambda kinds: ["missing"] if "caption" in kinds else []
    )
    with pytest.raises(ConfigError, match="missing"):
        held_out_questions(record, build, limit=1)

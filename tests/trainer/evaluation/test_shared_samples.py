"""A build whose records share samples is evaluated like the same data built without `share`."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import shards
from shards import Build
from shards.errors import ShardError
from shards.format.shard_info import ShardList
from tests.support import model_batches, small_blends
from tests.support.evaluations import FEW, ignore
from tests.support.tiny_models import IMAGE_TOKENS, SIDE, Attention, Loaded, loaded
from trainer.evaluation.compatibility import check_model_fits_build, prepare_for_loss
from trainer.evaluation.held_out import Question, prompt_for, question_text, questions_of
from trainer.evaluation.report import write_report
from trainer.evaluation.runner import answer_held_out, held_out_loss
from trainer.inference.generate import Generator

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
record = pytest.fixture(scope="module")(loaded)

ASKED = {0: 4, 1: 1, 2: 5}
"""Number of an image -> how many records of two rounds ask about it"""


class Builds(NamedTuple):
    shared: Build
    alone: Build


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    """Chat of two rounds, and questions with ten answers each, all held out: up to four records a sample, and one."""
    folder = tmp_path_factory.mktemp("builds")
    names = small_blends.write_images(folder / "mine", len(ASKED))
    shown = [names[image] for image, count in ASKED.items() for _ in range(count)]
    small_blends.write_chat(
        folder / "mine",
        [small_blends.chat_record(number, images=[name], rounds=2) for number, name in enumerate(shown)],
    )

    def built(name: str, share: int) -> Build:
        held_out = {"split": "eval", "share": share}
        blend = small_blends.write_blend(
            folder / f"{name}.yaml",
            [
                {"name": "vqa", "adapter": "vqa_v2", "root": str(small_blends.SAMPLES), **held_out},
                {"name": "mine", "adapter": "chat", "root": "mine", **held_out},
            ],
            image_tokens=IMAGE_TOKENS,
            limits={"max_length": 512},
            image={"size": SIDE, "store": "original"},
        )
        return shards.open(small_blends.build(blend, out=folder / name).path)

    return Builds(built("shared", 4), built("alone", 1))


def test_each_branch_is_asked_as_its_record_alone(builds: Builds, record: Loaded) -> None:
    shared, alone = ({_identity(one): _asked(build, one, record) for one in _of(build, record)} for build in builds)
    assert shared == alone
    assert sum(len(question["references"]) == 10 for question in shared.values()) == 5
    assert len(builds.shared["eval"]) < len(builds.alone["eval"]) == 15
    branches = Counter(question.branch for question in _of(builds.shared, record) if question.dataset == "mine")
    assert branches == {0: 4, 1: 4, 2: 4, 3: 4, None: 4}, "samples of 4, 1, 4 and 1 records, with two answers each"
    assert {question.branch for question in _of(builds.alone, record)} == {None}


def test_the_answers_and_scores_are_those_of_the_records_alone(builds: Builds, record: Loaded) -> None:
    drawn = replace(FEW, temperature=1.2, seed=3)
    shared, alone = (
        answer_held_out(record, build, _of(build, record), drawn, batch=7, advance=ignore) for build in builds
    )
    assert shared.scores.datasets == alone.scores.datasets
    answers = [{dialogue.record: dialogue.rounds for dialogue in scored.dialogues} for scored in (shared, alone)]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 15
    assert len({round_.answer for rounds in answers[0].values() for round_ in rounds}) > 15


@pytest.mark.parametrize("attention", ["mmca", "causal"])
def test_the_losses_are_those_of_the_records_alone(builds: Builds, attention: Attention) -> None:
    model = loaded(attention=attention)
    alone = held_out_loss(model, builds.alone, sequences=2, workers=0, advance=ignore)
    advances: list[int] = []
    assert prepare_for_loss(model, builds.shared.manifest) == []
    shared = held_out_loss(model, builds.shared, sequences=2, workers=0, advance=advances.append)
    assert shared.loss == pytest.approx(alone.loss, rel=1e-5)
    assert shared.datasets == pytest.approx(alone.datasets, rel=1e-5)
    assert shared.datasets.keys() == {"vqa", "mine"}
    assert sum(advances) == len(builds.shared["eval"])


def test_a_decoder_that_cannot_attend_to_branches_may_still_answer(builds: Builds, record: Loaded) -> None:
    windowed = loaded("tiny_mistral", "causal", sliding_window=64)
    (problem,) = prepare_for_loss(windowed, builds.shared.manifest)
    assert problem.startswith("share: this build has samples with branches of up to 512 positions")
    assert "which are 64; rebuild without share, or with limits: {max_length: 64}, or measure no loss" in problem
    assert prepare_for_loss(windowed, builds.alone.manifest) == []
    assert not windowed.model.expects_branches
    assert check_model_fits_build(windowed, builds.shared.manifest) == []


def test_the_report_shows_each_branch_with_its_image(
    builds: Builds, record: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Generator, "batch", lambda self, prompts, *_, **options: [[5] for _ in prompts])
    scored = answer_held_out(record, builds.shared, _of(builds.shared, record), FEW, batch=9, advance=ignore)
    write_report(tmp_path, scored.dialogues, title="t")
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    first, second = (row for row in rows if row["record"] == "chat/r2")
    assert (first["dialogue"], first["branch"], first["round"], first["images"]) == ("mine-000000000", 3, 1, ["0.jpg"])
    assert "Question 0 of record 2?" in first["question"]
    assert (second["dialogue"], second["branch"], second["round"], second["images"]) == ("mine-000000000", 3, 2, [])
    assert {row["branch"] for row in rows if row["record"] == "chat/r4"} == {None}
    page = (tmp_path / "results.html").read_text()
    assert page.count("<h2>mine-000000000, branch 3 ") == 1
    assert page.count("<img ") == page.count("<article") == 15


def test_a_limit_counts_records_and_spreads_them_evenly(builds: Builds, record: Loaded) -> None:
    every, some = _of(builds.shared, record), _of(builds.shared, record, limit=3)
    for name in builds.shared.datasets:
        records = list(dict.fromkeys(question.record for question in every if question.dataset == name))
        taken = list(dict.fromkeys(question.record for question in some if question.dataset == name))
        assert taken == [records[number * len(records) // 3] for number in range(3)]
    assert {question.name for question in some} < {question.name for question in every}
    assert _of(builds.shared, record, limit=10) == every


def test_a_sample_that_is_not_as_the_manifest_says_is_an_error_that_names_it(
    builds: Builds, record: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShardList, "by_branches", property(lambda shards: [(samples,) for samples in shards.samples]))
    with pytest.raises(ShardError, match=r"sample vqa-\d+ has 2 branches, the manifest says 1 .* dsvl-prep verify"):
        _of(builds.shared, record)


def _of(build: Build, record: Loaded, limit: int | None = None) -> list[Question]:
    return questions_of(build, record.chat_tokenizer.tokenizer, limit=limit)


def _identity(question: Question) -> tuple[str, str, int]:
    return question.dataset, question.record, question.number


def _asked(build: Build, question: Question, record: Loaded) -> dict[str, Any]:
    """All that a question says but where it is."""
    tokenizer = record.chat_tokenizer.tokenizer
    prompt = prompt_for(build, question, record.geometry, tokenizer.image_id)
    assert len(prompt.ids) == question.positions
    return {
        "ids": prompt.ids.tolist(),
        "images": prompt.images.tolist(),
        "slots": prompt.slots,
        "end_id": prompt.end_id,
        "kind": question.kind,
        "references": question.references,
        "shown": question_text(build, question, tokenizer, with_images=True),
    }

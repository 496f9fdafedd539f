"""Held-out questions are those of the build's own samples, with all that counts as a right answer."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("pycocoevalcap")

import dst
from shards import Build, Sample
from shards.loader import Loader
from tests.support import evaluations, model_batches
from tests.support.small_blends import TOKENIZER
from tests.support.tiny_models import GEOMETRY, IMAGE_TOKENS, Loaded, loaded
from trainer.evaluation.compatibility import check_model_fits_build
from trainer.evaluation.held_out import answer_spans, prompt_for, question_text, questions_of
from trainer.evaluation.metrics import exact_match

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
record = pytest.fixture(scope="module")(loaded)
build = pytest.fixture(scope="module")(evaluations.make_build)


def test_the_build_of_these_tests_has_all_kinds_held_out(build: Build, record: Loaded) -> None:
    assert all(build["eval"].sizes.values())
    assert check_model_fits_build(record, build.manifest) == []
    questions = questions_of(build, record.chat_tokenizer.tokenizer)
    assert {question.kind for question in questions} == {"vqa", "caption", "text"}
    assert any(question.number for question in questions if question.dataset == "captions")


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


def test_an_answer_that_was_cut_is_not_asked_for(build: Build, record: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = record.chat_tokenizer.tokenizer
    whole = questions_of(build, tokenizer)
    written = cast(property, Sample.metadata).fget
    assert written is not None
    cut = build["eval"][1].key

    def with_a_cut_answer(sample: Sample) -> dict[str, Any]:
        return {**written(sample), "notes": ["answer_cut"] if sample.key == cut else []}

    monkeypatch.setattr(Sample, "metadata", property(with_a_cut_answer))
    assert questions_of(build, tokenizer) == [question for question in whole if question.index != 1] != whole


def test_a_limit_takes_samples_of_every_dataset_evenly_spread(build: Build, record: Loaded) -> None:
    tokenizer = record.chat_tokenizer.tokenizer
    whole, some = questions_of(build, tokenizer), questions_of(build, tokenizer, limit=2)
    assert {question.dataset for question in some} == set(build.datasets)
    for name, size in build["eval"].sizes.items():
        places = sorted({question.index for question in whole if question.dataset == name})
        taken = sorted({question.index for question in some if question.dataset == name})
        assert taken == [places[number * size // min(2, size)] for number in range(min(2, size))]
    assert questions_of(build, tokenizer, limit=10**6) == whole


class HeldOut:
    """A held-out split of one sample, as `questions_of` and `prompt_for` read it."""

    def __init__(self, encoded: dst.Encoded) -> None:
        tokens = np.stack([encoded.ids, encoded.labels])
        self.sample = Sample("eval.tar", "k", memoryview(b'{"id": "chat/1", "images": []}'), tokens, ())
        dataset = SimpleNamespace(adapter="chat", shards={"eval": SimpleNamespace(by_branches=[(1,)], records=1)})
        self.manifest = SimpleNamespace(
            config=SimpleNamespace(image_tokens=IMAGE_TOKENS, stores_canvases=False), datasets={"mine": dataset}
        )

    def __getitem__(self, key: object) -> Any:
        return self.sample if isinstance(key, int) else self

    def named(self, index: int) -> tuple[str, Sample]:
        return "mine", self.sample


def test_an_answer_that_calls_a_tool_is_asked_for_with_the_tools_and_scored_as_text() -> None:
    tokenizer = dst.load_tokenizer(TOKENIZER, ("<|im_start|>", "<|im_end|>"))
    chat = dst.ChatTokenizer(dst.load_template("chatml"), tokenizer)
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}]
    messages: list[dst.Message] = [
        {"role": "user", "content": "Is it wet in Rome?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It is."},
    ]
    build = cast(Build, HeldOut(chat.encode(messages, tools=[tool])))
    call, answer = questions_of(build, tokenizer)
    (reference,) = call.references
    assert '"city": "Rome"' in reference
    assert answer.references == ("It is.",)
    prompts = [prompt_for(build, question, GEOMETRY, tokenizer.image_id) for question in (call, answer)]
    defined, called = (tokenizer.decode(prompt.ids.tolist()) for prompt in prompts)
    assert '"name": "weather"' in defined
    assert 'Rome"' not in defined
    assert called.startswith(defined)
    assert reference in called
    assert "rain" in question_text(build, answer, tokenizer, with_images=False)[0]
    asked = [(reference, 1.0), (reference.replace("Rome", "Oslo"), 0.0), ("It is wet.", 0.0)]
    assert [exact_match(prediction, call.references) for prediction, _ in asked] == [value for _, value in asked]

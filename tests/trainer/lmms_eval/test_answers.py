"""Answers do not depend on batches, losses are those of training, and what cannot be asked is reported first."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import shards
from shards.loader import Loader
from tests.support import model_batches, small_blends
from tests.support.talks import PHOTOS
from tests.support.tiny_models import IMAGE_TOKENS, SIDE, Loaded, loaded
from trainer.errors import TrainError
from trainer.inference.conversation import Exchange, answer_text, prompt_of
from trainer.inference.generate import Generator, Sampling
from trainer.inference.images import load_image
from trainer.lmms_eval.answers import Answer, Answerer, ChoiceLoss
from trainer.lmms_eval.generation_kwargs import AnswerSettings
from trainer.lmms_eval.questions import Question, conversation_of, user_turn

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
record = pytest.fixture(scope="module")(loaded)

ASKED = (
    ((PHOTOS[0], PHOTOS[1]), "Which of the two is older, and how can you tell?"),
    ((), "What is 2 + 2?"),
    ((PHOTOS[2],), "What is it?"),
    ((PHOTOS[1],), "Where?"),
)
SETTINGS = (
    AnswerSettings(sampling=Sampling(max_new_tokens=6)),
    AnswerSettings(sampling=Sampling(max_new_tokens=6, temperature=1.0, top_p=0.9, seed=3)),
    AnswerSettings(sampling=Sampling(max_new_tokens=3)),
)


def question(
    record: Loaded,
    number: int,
    settings: AnswerSettings = SETTINGS[0],
    *,
    text: str | None = None,
    answer: str | None = None,
) -> Question:
    photos, words = ASKED[number]
    messages = user_turn(words if text is None else text, [str(photo) for photo in photos])
    return Question(
        where=f"task t, document {number}",
        key=("t", number),
        settings=settings,
        read=lambda: conversation_of(messages, record.geometry, answer),
    )


def alone(record: Loaded, number: int, settings: AnswerSettings) -> str:
    """What a conversation gives, token by token."""
    photos, words = ASKED[number]
    generator = Generator(record.model, record.chat_tokenizer)
    exchange = Exchange(question=words, images=tuple(load_image(photo, record.geometry) for photo in photos))
    prompt = prompt_of([exchange], record, end_id=generator.end_id, limit=generator.limit)
    tokens = list(generator.session().answer(prompt, settings.sampling, key=("t", number)))
    return answer_text(record.chat_tokenizer.tokenizer, tokens, prompt.end_id)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_answers_are_those_of_each_conversation_alone_at_every_batch_size(record: Loaded, batch: int) -> None:
    questions = [question(record, number, settings) for settings in SETTINGS for number in range(len(ASKED))]
    expected = [alone(record, number, settings) for settings in SETTINGS for number in range(len(ASKED))]
    sizes: list[int] = []
    answers = Answerer(record, batch=batch, skip_too_long=False).answers(questions, sizes.append)
    assert [answer.text for answer in answers] == expected
    assert len(set(expected)) > 3  # so answers depend on questions
    assert sum(sizes) == len(questions)
    assert max(sizes) == min(batch, len(ASKED))
    assert all(answer.prompt_tokens > 2 * IMAGE_TOKENS for answer in answers[::4])
    assert {answer.new_tokens for answer in answers} <= set(range(1, 7))


def test_an_answer_is_cut_where_its_task_says(record: Loaded) -> None:
    number, whole = max(enumerate(alone(record, number, SETTINGS[0]) for number in range(4)), key=lambda it: len(it[1]))
    assert len(whole) > 3
    settings = AnswerSettings(sampling=SETTINGS[0].sampling, until=(whole[2:],))
    asked = [question(record, number, settings)]
    (answer,) = Answerer(record, batch=1, skip_too_long=False).answers(asked, lambda amount: None)
    assert answer.text == whole[: whole.index(whole[2:])].rstrip()


@pytest.mark.parametrize("template", ["visualchat", "chatml", "llama3"])
@pytest.mark.parametrize("attention", ["mmca", "causal"])
def test_a_choice_has_the_loss_that_it_has_as_a_sample_of_a_build(
    tmp_path: Path, template: str, attention: Any
) -> None:
    record = loaded(attention=attention, template=template)
    answers = ("The first.", "I do not know, they look alike.", "2")
    records = [
        {
            "id": f"{number}-{index}",
            "images": [photo.name for photo in photos],
            "messages": [
                {"role": "user", "content": [*({"type": "image"} for _ in photos), {"type": "text", "text": words}]},
                {"role": "assistant", "content": answer},
            ],
        }
        for number, (photos, words) in enumerate(ASKED)
        for index, answer in enumerate(answers)
    ]
    blend = small_blends.chat_blend(
        tmp_path,
        records,
        image_tokens=IMAGE_TOKENS,
        image={"size": SIDE, "store": "original"},
        dataset={"images": [str(PHOTOS[0].parent)]},
        template=template,
    )
    build = shards.open(small_blends.build(blend).path)
    expected: dict[str, float] = {}
    for batch in Loader(build, batch_size=1, max_length=2048, packed=False, epochs=1):
        with torch.no_grad():
            loss = record.model(**batch.tensors())
        ((_, key),) = batch.samples[0]
        sample = next(sample for sample in build["train"] if sample.key == key)
        expected[sample.metadata["id"]] = float(loss.total / loss.tokens)
    questions = [question(record, number, answer=answer) for number in range(len(ASKED)) for answer in answers]
    for size in (1, 5):
        losses = Answerer(record, batch=size, skip_too_long=False).losses(questions, lambda amount: None)
        actual = {key: loss.loss for key, loss in zip(sorted(expected), losses, strict=True)}
        assert actual == pytest.approx(expected, rel=1e-4)


def test_a_choice_is_greedy_if_the_model_would_say_it(record: Loaded) -> None:
    spoken = [alone(record, number, AnswerSettings(sampling=Sampling(max_new_tokens=1))) for number in range(2)]
    end = record.chat_tokenizer.tokenizer.control["</s>"]
    head = record.model.decoder.get_output_embeddings()
    hooked = head.register_forward_hook(
        lambda module, inputs, logits: logits + 1e4 * (torch.arange(logits.shape[-1]) == end)
    )
    try:
        losses = Answerer(record, batch=2, skip_too_long=False).losses(
            [question(record, 0, answer=""), question(record, 0, answer=spoken[0] + "x")], lambda amount: None
        )
    finally:
        hooked.remove()
    assert losses[0] == ChoiceLoss(loss=0.0, is_greedy=True)
    assert not losses[1].is_greedy


def test_all_problems_are_reported_before_the_first_answer(record: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Generator, "batch", lambda *_, **__: pytest.fail("an answer was generated"))
    long = "word " * 3000
    questions = [question(record, 0), question(record, 1, text="half \ud800"), question(record, 2, text=long)]
    with pytest.raises(TrainError) as caught:
        Answerer(record, batch=2, skip_too_long=False).answers(questions, lambda amount: None)
    first, second = str(caught.value).splitlines()
    assert first.startswith("task t, document 1: text holds half of a surrogate pair")
    assert second.startswith("task t, document 2: it takes ")
    assert "and the model reads at most 8192; set skip_too_long=True" in second


def test_questions_that_are_too_long_can_be_counted_as_answered_wrongly(record: Loaded) -> None:
    answerer = Answerer(record, batch=2, skip_too_long=True)
    questions = [question(record, 2), question(record, 1, text="word " * 3000)]
    sizes: list[int] = []
    answers = answerer.answers(questions, sizes.append)
    assert answers[0].text == alone(record, 2, SETTINGS[0])
    assert answers[1] == Answer(text="")
    assert sum(sizes) == 2
    losses = answerer.losses([question(record, 1, text="word " * 3000, answer="4")], lambda amount: None)
    assert losses == [ChoiceLoss(loss=math.inf, is_greedy=False)]


def test_of_many_problems_the_first_are_shown(record: Loaded) -> None:
    questions = [question(record, 1, text=f"{number} \ud800") for number in range(30)]
    for number, asked in enumerate(questions):
        object.__setattr__(asked, "where", f"document {number}")
    with pytest.raises(TrainError) as caught:
        Answerer(record, batch=2, skip_too_long=False).answers(questions, lambda amount: None)
    assert str(caught.value).splitlines()[-1] == "and 10 more problems"

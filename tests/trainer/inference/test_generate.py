"""Generation gives the tokens that recomputing the whole sequence for each would give, and stops where it should."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import dst
from tests.support import model_batches
from tests.support.model_batches import unlabelled
from tests.support.tiny_models import PRESETS, Attention, Fed, Loaded, loaded, prompt
from trainer.errors import TooLongError, TrainError
from trainer.inference.cached_decoder import Prompt
from trainer.inference.generate import Generator, Sampling, Session, position_limit

ATTENTIONS: tuple[Attention, ...] = ("causal", "mmca")
IMAGE = -1
"""Stands for a placeholder in the ids of these tests."""


one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
record = pytest.fixture(scope="module")(loaded)


@pytest.fixture(scope="module", params=[(preset, attention) for preset in PRESETS for attention in ATTENTIONS], ids=str)
def every(request: pytest.FixtureRequest) -> Loaded:
    return loaded(*request.param)


def made(record: Loaded, ids: list[int], *, seed: int = 0, end_id: int | None = None) -> Prompt:
    image_id = record.chat_tokenizer.tokenizer.image_id
    return prompt(record, [image_id if each == IMAGE else each for each in ids], seed=seed, end_id=end_id)


def text(length: int, seed: int) -> list[int]:
    return [random.Random(f"{seed} {number}").randrange(300, 1000) for number in range(length)]


def recomputed(record: Loaded, request: Prompt, count: int) -> list[int]:
    """The slow, obvious twin: the whole sequence through the model, without a cache, for every token."""
    model, tokenizer = record.model.eval(), record.chat_tokenizer.tokenizer
    never = sorted(tokenizer.control_ids - {request.end_id})
    ids: list[int] = request.ids.tolist()
    slots = torch.tensor([(0, slot) for slot in request.slots], dtype=torch.int64).reshape(-1, 2)
    for _ in range(count):
        row = torch.tensor([ids])
        with torch.no_grad():
            logits = model.logits(unlabelled(row, request.images, slots))[0, -1]
        logits[never] = -torch.inf
        ids.append(int(logits[: tokenizer.vocabulary_size].argmax()))
        if ids[-1] == request.end_id:
            break
    return ids[len(request.ids) :]


PROMPTS = (
    [*text(5, 1), IMAGE, *text(7, 2), IMAGE, IMAGE, *text(3, 3)],
    [IMAGE, *text(2, 4)],
    text(9, 5),
    [*text(24, 6), IMAGE, *text(1, 7)],
)


def test_greedy_answers_are_those_of_recomputing_everything_for_every_token(every: Loaded) -> None:
    generator = Generator(every.model, every.chat_tokenizer)
    for number, ids in enumerate(PROMPTS):
        request = made(every, ids, seed=10 * number)
        answer = list(generator.session().answer(request, Sampling(max_new_tokens=6)))
        assert answer == recomputed(every, request, 6)


def test_a_left_padded_batch_answers_as_each_prompt_alone(every: Loaded) -> None:
    prompts = [made(every, ids, seed=10 * number) for number, ids in enumerate(PROMPTS)]
    generator = Generator(every.model, every.chat_tokenizer)
    assert generator.batch(prompts, Sampling(max_new_tokens=6)) == [recomputed(every, each, 6) for each in prompts]


def test_later_rounds_with_new_images_feed_only_what_is_new_and_answer_as_if_all_were_fed(every: Loaded) -> None:
    session = Generator(every.model, every.chat_tokenizer).session()
    ids: list[int] = []
    read = images = 0
    for number, new in enumerate(
        ([*text(4, 1), IMAGE, *text(3, 2)], [*text(2, 3), IMAGE, IMAGE, *text(20, 4)], text(5, 5))
    ):
        ids += new
        request = made(every, ids, seed=3)
        with Fed(every) as fed:
            answer = list(session.answer(request, Sampling(max_new_tokens=5)))
        assert answer == recomputed(every, request, 5), f"round {number}"
        assert sum(fed.positions) == len(request.ids) - read + len(answer) - 1
        assert sum(fed.images) == len(request.slots) - images
        read, images = len(request.ids) + len(answer) - 1, len(request.slots)
        ids += answer


@settings(max_examples=25)
@given(data=st.data(), attention=st.sampled_from(ATTENTIONS))
def test_any_history_is_answered_as_it_is_whatever_was_read_before(data: st.DataObject, attention: Attention) -> None:
    """Prompts share beginnings, differ in a word or in an image, get shorter and longer."""
    record = _cached(attention)
    session = Generator(record.model, record.chat_tokenizer).session()
    tokens = st.lists(st.sampled_from([IMAGE, 400, 401, 500]), min_size=1, max_size=7)
    for _ in range(3):
        request = made(record, data.draw(tokens), seed=data.draw(st.sampled_from([0, 1])))
        count = data.draw(st.integers(1, 3))
        assert list(session.answer(request, Sampling(max_new_tokens=count))) == recomputed(record, request, count)


_RECORDS: dict[Attention, Loaded] = {}


def _cached(attention: Attention) -> Loaded:
    if attention not in _RECORDS:
        _RECORDS[attention] = loaded("tiny_qwen2", attention)
    return _RECORDS[attention]


def test_an_image_that_was_exchanged_is_read_again_and_nothing_before_it(record: Loaded) -> None:
    session = Generator(record.model, record.chat_tokenizer).session()
    ids = [*text(6, 1), IMAGE, *text(4, 2)]
    list(session.answer(made(record, ids, seed=0), Sampling(max_new_tokens=2)))
    other = made(record, ids, seed=7)
    expected = recomputed(record, other, 2)
    with Fed(record) as fed:
        assert list(session.answer(other, Sampling(max_new_tokens=2))) == expected
    assert sum(fed.positions) == len(other.ids) - 6 + len(expected) - 1


def test_an_answer_that_nobody_wants_to_hear_to_its_end_leaves_a_sound_memory(record: Loaded) -> None:
    session = Generator(record.model, record.chat_tokenizer).session()
    request = made(record, text(6, 1))
    speaking: Any = session.answer(request, Sampling(max_new_tokens=9))
    heard = [next(speaking), next(speaking)]
    speaking.close()
    longer = made(record, [*text(6, 1), *heard, *text(2, 2)])
    with Fed(record) as fed:
        assert list(session.answer(longer, Sampling(max_new_tokens=3))) == recomputed(record, longer, 3)
    assert fed.positions[0] == 3, "one of the two heard tokens was fed before"


def test_an_error_amid_the_layers_leaves_an_empty_memory(record: Loaded) -> None:
    session = Generator(record.model, record.chat_tokenizer).session()
    request = made(record, text(6, 1))
    list(session.answer(request, Sampling(max_new_tokens=2)))
    layer = record.model.decoder.base_model.get_submodule("layers.1")
    hook = layer.register_forward_pre_hook(_interrupt)
    longer = made(record, [*text(6, 1), *text(6, 2)])
    with pytest.raises(KeyboardInterrupt):
        list(session.answer(longer, Sampling(max_new_tokens=2)))
    hook.remove()
    assert list(session.answer(longer, Sampling(max_new_tokens=2))) == recomputed(record, longer, 2)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_answer_stops_with_the_end_token_and_the_rest_of_its_batch_continues(record: Loaded) -> None:
    first, second = (made(record, ids) for ids in PROMPTS[:2])
    generator = Generator(record.model, record.chat_tokenizer)
    whole = generator.batch([first, second], Sampling(max_new_tokens=6))
    end_id = whole[0][2]
    assert end_id not in whole[0][:2]
    ended, other = generator.batch([made(record, PROMPTS[0], end_id=end_id), second], Sampling(max_new_tokens=6))
    assert ended == whole[0][:3]
    assert other == whole[1]
    assert list(generator.session().answer(made(record, PROMPTS[0], end_id=end_id), Sampling())) == whole[0][:3]


@pytest.mark.parametrize("template", dst.BUILTIN)
def test_answers_end_with_the_last_token_that_training_learns(template: str) -> None:
    chat = loaded(template=template).chat_tokenizer
    messages: list[dst.Message] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A bus."},
    ]
    encoded = chat.encode(messages)
    generator = Generator(loaded(template=template).model, chat)
    assert generator.end_id == encoded.ids[encoded.trained[-1][1] - 1]


def test_no_control_token_and_no_unknown_row_is_ever_said_but_the_end(record: Loaded) -> None:
    tokenizer = record.chat_tokenizer.tokenizer
    rows = tokenizer.vocabulary_size + 50
    wide = loaded(vocab_size=rows)
    generator, drawer = Generator(wide.model, wide.chat_tokenizer), torch.Generator()
    logits = torch.zeros(1, rows)
    logits[0, [*range(tokenizer.vocabulary_size, rows), *tokenizer.control_ids]] = 5.0
    assert generator.choose(logits, [generator.end_id], [Sampling()], [drawer]) == [generator.end_id]
    other = min(tokenizer.control_ids - {generator.end_id})
    logits[0, generator.end_id], logits[0, 700] = 0.0, 1.0
    assert generator.choose(logits, [other], [Sampling()], [drawer]) == [other], "a prompt may have an end of its own"
    assert generator.choose(logits, [generator.end_id], [Sampling()], [drawer]) == [700]


def test_draws_follow_the_model_s_probabilities_and_top_p_leaves_the_tail_out(record: Loaded) -> None:
    generator = Generator(record.model, record.chat_tokenizer)
    probabilities = {500: 0.5, 501: 0.3, 502: 0.15, 503: 0.05}
    logits = torch.full((1, record.chat_tokenizer.tokenizer.vocabulary_size), -1e4)
    for token, probability in probabilities.items():
        logits[0, token] = torch.tensor(probability).log()

    def drawn(**settings: float) -> Counter[int]:
        drawer = torch.Generator().manual_seed(3)
        sampling = Sampling(temperature=settings.get("temperature", 1.0), top_p=settings.get("top_p", 1.0))
        return Counter(generator.choose(logits, [generator.end_id], [sampling], [drawer])[0] for _ in range(600))

    plain = drawn()
    assert all(abs(plain[token] / 600 - probability) < 0.07 for token, probability in probabilities.items())
    assert set(drawn(top_p=0.75)) == {500, 501}
    assert set(drawn(top_p=0.01)) == {500}
    assert set(drawn(top_p=1e-300)) == {500}  # 0 in the precision of probabilities
    assert set(drawn(temperature=1e-300)) == {500}  # logits divided by it would be infinite
    assert drawn(temperature=0.2)[500] > 550


def test_draws_depend_on_seed_and_key_and_not_on_the_batch(record: Loaded) -> None:
    generator = Generator(record.model, record.chat_tokenizer)
    prompts = [made(record, ids) for ids in PROMPTS[:3]]
    sampling = Sampling(max_new_tokens=5, temperature=1.5, seed=4)
    keys = [("vqa", "1"), ("vqa", "2"), ("captions", "1")]
    answers = generator.batch(prompts, sampling, keys=keys)
    assert generator.batch(prompts[::-1], sampling, keys=keys[::-1]) == answers[::-1]
    assert list(generator.session().answer(prompts[1], sampling, key=("vqa", "2"))) == answers[1]
    other = Sampling(max_new_tokens=5, temperature=1.5, seed=5)
    assert generator.batch(prompts, other, keys=keys) != answers
    assert generator.batch(prompts, sampling, keys=[("vqa", "3"), *keys[1:]])[0] != answers[0]


def test_an_answer_has_the_room_that_the_decoder_leaves_and_no_more() -> None:
    record = loaded(max_position_embeddings=64)
    generator = Generator(record.model, record.chat_tokenizer)
    assert generator.limit == 64
    nearly = made(record, text(61, 1))
    assert len(list(generator.session().answer(nearly, Sampling(max_new_tokens=9)))) == 3
    short = made(record, text(9, 2))
    lengths = [len(answer) for answer in generator.batch([nearly, short], Sampling(max_new_tokens=9))]
    assert lengths == [3, 9]
    with pytest.raises(TooLongError, match="takes 64 positions with its images, and the model reads at most 64"):
        generator.batch([short, made(record, text(64, 1))], Sampling())
    session: Session = generator.session()
    with pytest.raises(TooLongError):
        next(session.answer(made(record, text(70, 1)), Sampling()))
    assert list(session.answer(short, Sampling(max_new_tokens=2))) == recomputed(record, short, 2)


def test_a_sliding_window_bounds_mmca_and_is_slid_by_causal_attention() -> None:
    windowed: dict[str, Any] = {"sliding_window": 24, "max_position_embeddings": 64}
    assert position_limit(loaded("tiny_mistral", "mmca", **windowed).model) == 24
    record = loaded("tiny_mistral", "causal", **windowed)
    assert position_limit(record.model) == 64
    session = Generator(record.model, record.chat_tokenizer).session()
    ids = text(30, 1)
    for new in (text(4, 2), text(3, 3)):
        ids = [*ids, *new]
        request = made(record, ids)
        answer = list(session.answer(request, Sampling(max_new_tokens=4)))
        assert answer == recomputed(record, request, 4)
        ids = [*ids, *answer]
    changed = made(record, [*text(30, 1), *text(3, 9)])
    assert list(session.answer(changed, Sampling(max_new_tokens=4))) == recomputed(record, changed, 4)
    record.model.expect_branches()
    assert position_limit(record.model) == 24, "attention to branches slides no window"


def test_weights_that_give_no_numbers_are_an_error() -> None:
    record = loaded()
    with torch.no_grad():
        record.model.decoder.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(TrainError, match="NaN or infinite"):
        Generator(record.model, record.chat_tokenizer).batch([made(record, text(3, 1))], Sampling())


def test_settings_out_of_range_are_reported_all_at_once() -> None:
    assert Sampling().problems() == []
    assert Sampling(max_new_tokens=0, temperature=-1.0, top_p=0.0).problems() == [
        "--max-new-tokens: got 0; expected 1 or more",
        "--temperature: got -1.0; expected 0 or more",
        "--top-p: got 0.0; expected more than 0, up to 1",
    ]

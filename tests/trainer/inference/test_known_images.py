"""What earlier batches and conversations read is not read again, within a bound, and only for the same weights."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.support import model_batches
from tests.support.tiny_models import IMAGE_TOKENS, Attention, Fed, Loaded, loaded, prompt
from tests.support.whole_sequences import whole_logits
from trainer.inference.cached_decoder import Prompt
from trainer.inference.caches import CacheSettings
from trainer.inference.generate import Generator, Sampling
from trainer.inference.separate_rows import SeparateRows
from trainer.inference.weights_mark import weights_mark

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
record = pytest.fixture(scope="module")(loaded)

ATTENTIONS: tuple[Attention, ...] = ("causal", "mmca")
FEW = Sampling(max_new_tokens=3)


def made(record: Loaded, text: list[int | None], seed: int = 0) -> Prompt:
    """None: an image; the images depend on the seed and their number."""
    image_id = record.chat_tokenizer.tokenizer.image_id
    return prompt(record, [image_id if token is None else token for token in text], seed=seed)


def generator_of(record: Loaded, gb: float = 1.0, folder: Path | None = None) -> Generator:
    return Generator(record.model, record.chat_tokenizer, CacheSettings(gb=gb, folder=folder))


def expected(record: Loaded, request: Prompt, count: int = FEW.max_new_tokens) -> list[int]:
    """By a forward over the whole sequence for each token."""
    tokenizer = record.chat_tokenizer.tokenizer
    tokens: list[int] = []
    for _ in range(count):
        logits = whole_logits(record.model, request, tokens)
        logits[sorted(tokenizer.control_ids - {request.end_id})] = -torch.inf
        tokens.append(int(logits[: tokenizer.vocabulary_size].argmax()))
        if tokens[-1] == request.end_id:
            break
    return tokens


def test_an_image_of_an_earlier_batch_costs_no_pass_of_encoder_or_decoder(record: Loaded) -> None:
    generator = generator_of(record)
    generator.batch([made(record, [400, None, None, 401], seed=0), made(record, [402, None, 403], seed=7)], FEW)
    later = [made(record, [500 + number, None, 501, None, *range(510, 530)], seed=0) for number in range(3)]
    answers = [expected(record, each) for each in later]
    with Fed(record) as fed:
        assert generator.batch(later, FEW) == answers
    assert fed.images == []
    assert fed.positions == [22, *[1] * (max(map(len, answers)) - 1)], "the text of all prompts together"
    assert (generator.cache.misses, generator.cache.hits) == (3, 6)


def test_a_question_about_the_same_beginning_of_a_causal_model_reads_only_what_is_new() -> None:
    record = loaded("tiny_qwen2", "causal")
    generator = generator_of(record)
    generator.batch([made(record, [400, None, 401, 402])], FEW)
    later = [made(record, [400, None, 401, 500 + number]) for number in range(2)]
    answers = [expected(record, each) for each in later]
    with Fed(record) as fed:
        assert generator.batch(later, FEW) == answers
    assert (fed.images, fed.positions[0]) == ([], 1)
    assert (generator.cache.misses, generator.cache.hits) == (1, 2)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_new_conversation_about_a_known_image_does_not_encode_it(attention: Attention) -> None:
    record = loaded("tiny_llama", attention)
    generator = generator_of(record)
    session = generator.session()
    first, second = made(record, [400, None, 401]), made(record, [400, None, 500, 501])
    list(session.answer(first, FEW))
    for talk in (session, generator.session()):
        talk.reset()
        with Fed(record) as fed:
            answer = list(talk.answer(second, FEW))
        assert answer == expected(record, second)
        assert fed.images == []


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_conversation_stays_in_memory_where_nothing_else_is_kept(attention: Attention) -> None:
    record = loaded("tiny_llama", attention)
    generator = generator_of(record, gb=0)
    session = generator.session()
    first = made(record, [400, None, 401])
    answer = list(session.answer(first, FEW))
    second = replace(first, ids=torch.cat([torch.tensor(first.ids), torch.tensor([*answer, 500])]).numpy())
    with Fed(record) as fed:
        again = list(session.answer(second, FEW))
    assert again == expected(record, second)
    assert (fed.images, fed.positions[0]) == ([], 2), "the last token of the answer, and the new one"
    assert generator.cache.num_bytes == 0


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("kilobytes", [0, 30, 200])
def test_any_bound_is_kept_and_answers_are_the_same(attention: Attention, kilobytes: int) -> None:
    record = loaded("tiny_qwen3", attention)
    generator = generator_of(record, gb=kilobytes / 2**20)
    for number in range(6):
        prompts = [made(record, [400, None, 401, None, 402 + row], seed=5 * (number // 2)) for row in range(3)]
        assert generator.batch(prompts, FEW) == [expected(record, each) for each in prompts]
        assert generator.cache.num_bytes <= kilobytes * 1024
    assert (generator.cache.hits > 0) == (attention == "mmca" or kilobytes > 0)


def _by_data(record: Loaded) -> None:
    for parameter in record.model.projector.parameters():
        parameter.data.mul_(1.5)  # as DeepSpeed writes


def _one_value(record: Loaded) -> None:
    record.model.decoder.get_input_embeddings().weight.data[400, 0] += 0.5


def _by_an_optimizer(record: Loaded) -> None:
    parameters = [parameter for parameter in record.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def _by_loading(record: Loaded) -> None:
    record.model.load_state_dict({name: tensor + 0.05 for name, tensor in record.model.state_dict().items()})


@pytest.mark.parametrize("change", [_by_data, _one_value, _by_an_optimizer, _by_loading])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_nothing_of_older_weights_is_used(attention: Attention, change: Any, tmp_path: Path) -> None:
    record = loaded("tiny_llama", attention)
    generator = generator_of(record, folder=tmp_path)
    session = generator.session()
    asked = made(record, [400, None, 401, None, 402])
    generator.batch([asked], FEW)
    list(session.answer(asked, FEW))
    change(record)
    answer = expected(record, asked)
    with Fed(record) as fed:
        assert generator.batch([asked], FEW) == [answer]
    assert fed.images == [2], "encoded again"
    assert list(session.answer(asked, FEW)) == answer


def test_the_mark_of_weights_changes_with_any_bit_in_any_precision() -> None:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        module = torch.nn.BatchNorm1d(3).to(dtype)
        marks = {weights_mark(module)}
        assert weights_mark(module) in marks
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data.view(-1)[-1:] += 1
            marks.add(weights_mark(module))
        assert len(marks) == 6


def test_the_mark_of_weights_changes_when_rows_are_exchanged() -> None:
    module = torch.nn.Linear(4, 3)
    marks = {weights_mark(module)}
    for tensor in module.parameters():
        tensor.data = tensor.data[[1, 0, 2]]
        marks.add(weights_mark(module))
    assert len(marks) == 3


def test_threads_may_share_a_generator(record: Loaded) -> None:
    generator = generator_of(record, gb=20 / 2**20)
    results: dict[int, bool] = {}

    def ask(number: int) -> None:
        asked = [made(record, [400 + number, None, 500 + turn, None], seed=turn % 3) for turn in range(6)]
        asked = [
            replace(each, ids=each.ids[:-IMAGE_TOKENS], images=each.images[:1], slots=each.slots[:1]) for each in asked
        ]
        answers = [list(generator.session().answer(each, FEW)) for each in asked[:2]] + generator.batch(asked[2:], FEW)
        results[number] = answers == [expected(record, each) for each in asked]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(3), True)


def test_the_cache_gives_its_memory_back_when_there_is_no_more(record: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = generator_of(record)
    first, second = made(record, [400, None, 401], seed=1), made(record, [402, None, 403], seed=2)
    generator.batch([first], FEW)
    choose = Generator.choose

    def full(self: Generator, *arguments: Any) -> list[int]:
        if generator.cache.image_bytes and first in known:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return choose(self, *arguments)

    known = [first]
    monkeypatch.setattr(Generator, "choose", full)
    monkeypatch.setattr(generator.cache, "clear", lambda: known.clear())
    assert generator.batch([second], FEW) == [expected(record, second)]
    known.append(first)
    monkeypatch.setattr(generator.cache, "clear", lambda: None)
    with pytest.raises(torch.OutOfMemoryError):
        generator.batch([second], FEW)


def test_an_answer_that_is_left_open_does_not_disturb_the_next(record: Loaded) -> None:
    session = generator_of(record).session()
    first, second = made(record, [400, None, 401]), made(record, [400, None, 500])
    left_open = session.answer(first, FEW)
    next(left_open)
    assert list(session.answer(second, FEW)) == expected(record, second)
    del left_open


def test_decoders_with_caches_of_their_own_answer_batches_and_continue_conversations() -> None:
    record = loaded("tiny_mistral", "causal", sliding_window=24, max_position_embeddings=64)
    generator = generator_of(record)
    rows = generator.plan.open(3, generator.cache)
    assert isinstance(rows, SeparateRows)
    prompts = [made(record, [*range(400, 400 + 9 * number), None, 500]) for number in range(3)]
    joined = rows.join_all(prompts)
    for index, read in joined:
        torch.testing.assert_close(read.logits_V, whole_logits(record.model, prompts[index]), rtol=1e-4, atol=1e-4)
    rows.leave(0, keep=True)  # the last takes its place
    logits = rows.step([600, 601])
    for row, (index, token) in enumerate(((2, 600), (1, 601))):
        torch.testing.assert_close(
            logits[row], whole_logits(record.model, prompts[index], [token]), rtol=1e-4, atol=1e-4
        )
    assert generator.batch(prompts, FEW) == [expected(record, each) for each in prompts]
    rows = generator.plan.open(1, generator.cache)
    list(rows.join(prompts[0]))
    rows.step([600])
    rows.leave(0, keep=True)
    longer = made(record, [None, 500, 600, 601])
    (again,) = rows.join(longer)
    assert again is not None
    assert again.cached == IMAGE_TOKENS + 2
    torch.testing.assert_close(again.logits_V, whole_logits(record.model, longer), rtol=1e-4, atol=1e-4)

"""Rows that share one memory give the logits of whole sequences, whatever joins, leaves and is found in the cache."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")

from tests.support import model_batches
from tests.support.tiny_models import PRESETS, Attention, Fed, Loaded, loaded, prompt
from tests.support.tried_rows import Tried
from tests.support.whole_sequences import whole_logits
from trainer.inference import joining, shared_rows
from trainer.inference.cached_decoder import Prompt
from trainer.inference.generate import Generator
from trainer.inference.rows import Read
from trainer.inference.shared_rows import SharedRows
from trainer.inference.state_cache import StateCache

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)

ATTENTIONS: tuple[Attention, ...] = ("causal", "mmca")
NUM_ROWS = 3


_MODELS: dict[tuple[str, Attention], tuple[Loaded, Generator]] = {}


def tried(preset: str, attention: Attention, limit_bytes: int = 1 << 30) -> Tried:
    """In double precision, so that only real differences show."""
    if (preset, attention) not in _MODELS:
        record = loaded(preset, attention)
        record.model.double()
        _MODELS[preset, attention] = record, Generator(record.model, record.chat_tokenizer)
    record, generator = _MODELS[preset, attention]
    rows = generator.plan.open(NUM_ROWS, StateCache(limit_bytes))
    assert not generator.plan.notes
    assert isinstance(rows, SharedRows)
    return Tried(record, rows)


def shown(record: Loaded, text: list[int | None], seed: int = 0) -> Prompt:
    """None: an image."""
    image_id = record.chat_tokenizer.tokenizer.image_id
    return prompt(record, [image_id if token is None else token for token in text], seed=seed)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("preset", PRESETS)
def test_rows_of_any_length_join_and_leave_between_tokens(preset: str, attention: Attention) -> None:
    rows = tried(preset, attention)
    rows.join(shown(rows.record, [400, None, 401, 402, None, None, 403]))
    rows.step([500])
    rows.join(shown(rows.record, [600]))
    rows.step([501, 601])
    rows.join(shown(rows.record, [*range(700, 730), None, 800], seed=3))
    rows.step([502, 602, 900])
    rows.leave(0)
    rows.step([901, 603])
    rows.leave(1)
    rows.join(shown(rows.record, [600, 601, 602, None, 404]))
    rows.step([902, 604])


@settings(max_examples=40)
@given(data=st.data(), attention=st.sampled_from(ATTENTIONS), limit_bytes=st.sampled_from([0, 20_000, 1 << 30]))
def test_any_schedule_gives_the_logits_of_whole_sequences(
    data: st.DataObject, attention: Attention, limit_bytes: int
) -> None:
    """Prompts share beginnings and images, and come again while and after others are answered."""
    rows = tried("tiny_qwen2", attention, limit_bytes)
    prompts = st.lists(st.sampled_from([None, 400, 401]), min_size=1, max_size=6)
    for _ in range(data.draw(st.integers(1, 8))):
        room = NUM_ROWS - len(rows.expected)
        can = ["join", "join_all"] * (room > 0) + ["step", "leave"] * bool(rows.expected)
        action = data.draw(st.sampled_from(can))
        if action == "join":
            rows.join(shown(rows.record, data.draw(prompts), seed=data.draw(st.sampled_from([0, 1]))))
        elif action == "join_all":
            batch = data.draw(st.lists(st.tuples(prompts, st.sampled_from([0, 1])), min_size=1, max_size=room))
            rows.join_all([shown(rows.record, each, seed=seed) for each, seed in batch])
        elif action == "step":
            rows.step([data.draw(st.sampled_from([400, 401])) for _ in rows.expected])
        else:
            row = data.draw(st.integers(0, len(rows.expected) - 1))
            rows.leave(row, keep=data.draw(st.booleans()))


@pytest.mark.parametrize("piece", [3, 4096])
@pytest.mark.parametrize("worth_waiting", [0, 64])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_prompts_of_any_length_are_read_at_once(
    attention: Attention, worth_waiting: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "WORTH_WAITING", worth_waiting)
    monkeypatch.setattr(shared_rows, "GROUP", piece)
    rows = tried("tiny_qwen3", attention)
    long, short = [*range(700, 730), None, 800], [400, None, 401, None, None, 402]
    rows.join_all([shown(rows.record, short), shown(rows.record, long, seed=3), shown(rows.record, [600])])
    rows.step([500, 501, 502])
    for row in (1, 0, 0):
        rows.leave(row)
    later = [*short, 403, None, *range(600, 620)]
    rows.join_all([shown(rows.record, later), shown(rows.record, [*long, 801], seed=3), shown(rows.record, [None])])
    rows.step([500, 501, 502])


def test_a_known_image_costs_no_pass_of_encoder_or_decoder() -> None:
    rows = tried("tiny_llama", "mmca")
    first = shown(rows.record, [400, 401, None, 402])
    second = shown(rows.record, [500, None, *range(501, 521), None, 530])  # one known image, and a new one
    assert rows.join(first) == 0
    with Fed(rows.record) as fed:
        list(rows.rows.join(second))
    assert fed.images == [1]
    assert fed.positions == [4, 22], "the new image, and the text"
    rows = tried("tiny_llama", "mmca")
    rows.join(first)
    rows.join(shown(rows.record, [600, None, 601]))
    assert rows.join(shown(rows.record, [None, 602])) == 4


def test_an_image_that_a_batch_shows_several_times_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tried("tiny_llama", "mmca")
    prompts = [shown(rows.record, [400 + number, None, 500]) for number in range(NUM_ROWS)]
    with Fed(rows.record) as fed:
        rows.rows.join_all(prompts)
    assert (fed.images, fed.positions) == ([1], [4, 2])
    monkeypatch.setattr(joining, "WORTH_WAITING", 3)
    rows = tried("tiny_llama", "causal")
    prompts = [shown(rows.record, [400, None, 500 + number]) for number in range(NUM_ROWS)]
    with Fed(rows.record) as fed:
        rows.rows.join_all(prompts)
    assert (fed.images, fed.positions) == ([1], [6, 1]), "the others begin as the first does"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_known_image_gives_the_logits_of_reading_it_within_1e_5_in_single_precision(preset: str) -> None:
    record = loaded(preset, "mmca")
    cache = StateCache(1 << 30)
    rows = Generator(record.model, record.chat_tokenizer).plan.open(1, cache)
    list(rows.join(shown(record, [400, None, 401])))
    rows.leave(0, keep=True)
    later = shown(record, [*range(600, 640), None, 500, 501])
    (read,) = [read for read in rows.join(later) if read is not None]
    assert cache.hits == 1
    whole = whole_logits(record.model, later)
    assert (read.logits_V - whole).norm() <= 1e-5 * whole.norm()


def test_the_text_of_a_known_beginning_is_not_read_again() -> None:
    for attention in ATTENTIONS:
        rows = tried("tiny_llama", attention)
        rows.join(shown(rows.record, [400, None, 401, 402]))
        rows.step([500])
        rows.step([501])
        rows.leave(0)
        next_round = shown(rows.record, [400, None, 401, 402, 500, 501, 600, 601])
        with Fed(rows.record) as fed:
            (read,) = [read for read in rows.rows.join(next_round) if isinstance(read, Read)]
        assert (fed.positions, sum(fed.images)) == ([2], 0)
        assert read.cached == len(next_round.ids) - 2


def test_an_image_that_differs_ends_the_known_beginning_of_a_causal_model() -> None:
    rows = tried("tiny_llama", "causal")
    same = [400, None, 401, 402]
    rows.join(shown(rows.record, same))
    assert rows.join(shown(rows.record, same, seed=9)) == 1
    assert rows.join(shown(rows.record, same)) == 6
    rows.leave(0)
    changed = shown(rows.record, same)
    changed.images[0, 2, -1, -1] ^= 1
    assert rows.join(changed) == 1


def test_nothing_is_kept_of_a_row_that_failed() -> None:
    rows = tried("tiny_llama", "causal")
    rows.join(shown(rows.record, [400, 401]))
    rows.step([402])
    rows.leave(0, keep=False)
    assert rows.join(shown(rows.record, [400, 401, 402, 403])) == 2, "the prompt alone"


def test_numbers_that_are_not_finite_stay_in_their_row() -> None:
    rows = tried("tiny_llama", "mmca")
    embeddings = rows.record.model.decoder.get_input_embeddings().weight
    rows.join(shown(rows.record, [400, 401]))
    (read,) = [read for read in rows.rows.join(shown(rows.record, [600])) if read is not None]
    assert read.logits_V.isfinite().all()
    before = embeddings[999].clone()
    embeddings.data[999] = float("nan")
    logits = rows.rows.step([402, 999])
    embeddings.data[999] = before
    assert logits.isfinite().all(-1).tolist() == [True, False]
    rows.expected[0][1].append(402)
    rows.rows.leave(1, keep=False)
    rows.join(shown(rows.record, [700]))
    rows.step([403, 701])
    rows.step([404, 702])


def test_a_long_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_rows, "CHUNK", 3)
    for attention in ATTENTIONS:
        rows = tried("tiny_qwen3", attention)
        rows.join(shown(rows.record, [600]))
        pieces = rows.rows.join(shown(rows.record, [400, None, *range(401, 412)]))
        while next(pieces) is None:
            rows.step([601])  # the others are answered meanwhile
        rows.rows.leave(1, keep=False)
        rows.join(shown(rows.record, [400, None, *range(401, 412), None, 300]))

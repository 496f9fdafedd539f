"""Rows that share one memory give the logits of whole sequences, whatever joins, leaves and is found in the cache."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")

from tests.support import model_batches
from tests.support.model_batches import CONFIG, IMAGE_IDS, facts, random_images
from tests.support.tiny_models import GEOMETRY, PRESETS, Attention, Fed, Loaded, loaded, prompt
from tests.support.whole_sequences import whole_logits
from tools.decoders.tiny import tiny_config
from trainer.config.model import DecoderConfig
from trainer.inference import joining, shared_rows
from trainer.inference.cached_decoder import Prompt
from trainer.inference.generate import Generator, position_limit
from trainer.inference.open_rows import plan_rows
from trainer.inference.rows import Read, Rows
from trainer.inference.separate_rows import SeparateRows
from trainer.inference.shared_rows import SharedRows
from trainer.inference.state_cache import StateCache
from trainer.model.build_model import build_model

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)

ATTENTIONS: tuple[Attention, ...] = ("causal", "mmca")
NUM_ROWS = 3


@dataclass
class Tried:
    """Rows, and what each should have read."""

    record: Loaded
    rows: Rows
    expected: list[tuple[Prompt, list[int]]] = field(default_factory=list)

    def join(self, prompt: Prompt) -> int:
        """Returns the number of cached tokens."""
        (read,) = [read for read in self.rows.join(prompt) if read is not None]
        torch.testing.assert_close(read.logits_V, whole_logits(self.record.model, prompt), rtol=1e-9, atol=1e-9)
        self.expected.append((prompt, []))
        return read.cached

    def join_all(self, prompts: list[Prompt]) -> list[int]:
        """Returns the number of cached tokens of each, in the order of the prompts."""
        joined = self.rows.join_all(prompts)
        for index, read in joined:
            whole = whole_logits(self.record.model, prompts[index])
            torch.testing.assert_close(read.logits_V, whole, rtol=1e-9, atol=1e-9)
            self.expected.append((prompts[index], []))
        return [read.cached for _, read in sorted(joined, key=itemgetter(0))]

    def step(self, tokens: list[int]) -> None:
        logits = self.rows.step(tokens)
        for row, (begin, read) in enumerate(self.expected):
            read.append(tokens[row])
            whole = whole_logits(self.record.model, begin, read)
            torch.testing.assert_close(logits[row], whole, rtol=1e-9, atol=1e-9)

    def leave(self, row: int, *, keep: bool = True) -> None:
        self.rows.leave(row, keep=keep)
        last = self.expected.pop()
        if row < len(self.expected):
            self.expected[row] = last


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


_NONE: Any = None
"""For what the tests of decoders do not use"""
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
DECODERS: dict[str, tuple[dict[str, Any], Attention, str]] = {
    "partial rotary": ({"model_type": "gpt_neox"}, "mmca", "images"),
    "partial rotary, parallel": ({"model_type": "phi"}, "mmca", "images"),
    "interleaved rotary": ({"model_type": "cohere"}, "mmca", "images"),
    "yarn": ({"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "mmca", "images"),
    "angles by length": ({"model_type": "llama", "rope_parameters": DYNAMIC}, "mmca", "rows"),
    "absolute positions": ({"model_type": "gpt2"}, "mmca", "rows"),
    "absolute positions, causal": ({"model_type": "gpt2"}, "causal", "rows"),
    "positions by distance": ({"model_type": "bloom"}, "causal", "separate"),
    "window": ({"model_type": "mistral", "sliding_window": 5}, "causal", "separate"),
    "recurrent": ({"model_type": "mamba"}, "causal", "separate"),
    "recurrent and attention": ({"model_type": "qwen3_next"}, "causal", "separate"),
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_get_what_they_can_and_a_note_says_what_they_cannot(name: str) -> None:
    options, attention, expected = DECODERS[name]
    config = {**tiny_config(options["model_type"]), **options}
    decoder = DecoderConfig(config=config, attn_implementation="eager")
    model = build_model(replace(CONFIG, decoder=decoder, attention=attention), facts()).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.double()
    plan = plan_rows(model, torch.device("cpu"), position_limit(model))
    rows, notes = plan.open(2, StateCache(1 << 30)), plan.notes
    if expected == "separate":
        assert isinstance(rows, SeparateRows)
        assert "one after the other" in notes[0]
    else:
        assert isinstance(rows, SharedRows)
        assert (plan.images is not None) == (expected == "images")
        check = Tried(Loaded(model=model, chat_tokenizer=_NONE, geometry=GEOMETRY), rows)
        for ids, slots in (([5, *IMAGE_IDS, 6, 7], (1,)), ([8, 9, 10, *IMAGE_IDS, 11], (3,))):
            check.join(Prompt(ids=np.array(ids), images=random_images(1), slots=slots, end_id=0))
        check.step([12, 13])
        check.leave(0)
        check.step([14])
        reads_again = expected == "rows" and attention == "mmca"
        assert ["images are read again" in note for note in notes] == [True] * reads_again

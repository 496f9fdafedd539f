"""The engine answers each request as if it were alone, whatever else joins or leaves."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import functools
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.support import model_batches
from tests.support.engines import Heard, Held, alone, asked, generator_of, small_engine
from tests.support.tiny_models import Fed, Loaded, loaded
from trainer.inference.generate import Generator, Sampling
from trainer.serving.engine import Engine, Request, Ticket

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
record = pytest.fixture(scope="module")(loaded)
generator = pytest.fixture(scope="module")(generator_of)
engine = pytest.fixture(small_engine)


def test_each_request_gets_the_tokens_that_it_gets_alone(record: Loaded, generator: Generator, engine: Engine) -> None:
    requests = [asked(record, seed, tokens=3 + 2 * seed, temperature=0.9 * (seed % 2)) for seed in range(3)]
    heard = [Heard() for _ in requests]
    for request, listener in zip(requests, heard, strict=True):
        engine.submit(request, listener)
    for request, listener in zip(requests, heard, strict=True):
        assert listener.wait().tokens == alone(generator, request)
        assert listener.reason in ("stop", "length")
        assert listener.usage is not None
        assert listener.usage.prompt_tokens == len(request.prompt.ids)
        assert listener.usage.new_tokens == len(listener.tokens) + (listener.reason == "stop")


@settings(max_examples=15)
@given(data=st.data())
def test_requests_that_come_and_go_at_any_token_get_what_they_get_alone(data: st.DataObject) -> None:
    """Each token of an answer may submit the next request or cancel its own."""
    record, generator = _shared()
    engine, lock = Engine(generator, batch=3, queue=100), threading.Lock()
    drawn = data.draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 7)), min_size=1, max_size=6))
    requests = [asked(record, seed, tokens=tokens, temperature=0.7 * (seed % 2)) for seed, tokens in drawn]
    limits = [data.draw(st.none() | st.integers(1, 3)) for _ in requests]
    waiting = list(range(len(requests)))
    heard: dict[int, Heard] = {}
    tickets: dict[int, Ticket] = {}

    def submit_next() -> None:
        index = waiting.pop(0)

        def on_token(token: int) -> None:
            with lock:
                if waiting:
                    submit_next()
                if len(heard[index].tokens) == limits[index]:
                    tickets[index].cancel()

        heard[index] = Heard(on_token)
        tickets[index] = engine.submit(requests[index], heard[index])

    while waiting:
        with lock:
            submit_next()
        for listener in [*heard.values()]:
            listener.wait()
    engine.close(within_s=60)
    for index, request in enumerate(requests):
        expected, limit = alone(generator, request), limits[index]
        assert heard[index].tokens == expected[:limit]
        if limit is not None and limit < len(expected):
            assert heard[index].reason == "cancelled"


@functools.cache
def _shared() -> tuple[Loaded, Generator]:
    record = loaded()
    return record, Generator(record.model, record.chat_tokenizer)


def test_several_requests_take_one_forward_for_a_token_of_each(record: Loaded, generator: Generator) -> None:
    engine = Engine(generator, batch=4)
    held = Held(engine, asked(record, 1, tokens=20))
    others = [Heard() for _ in range(3)]
    for seed, listener in enumerate(others):
        engine.submit(asked(record, seed, tokens=20), listener)
    with Fed(record) as fed:
        held.release()
        for listener in (held.heard, *others):
            assert listener.wait().reason == "length"
        engine.close(within_s=60)
    assert len(fed.positions) < 40, "of 80 tokens, and 3 prompts"


def test_what_was_read_for_one_request_serves_the_next(record: Loaded, generator: Generator, engine: Engine) -> None:
    first = asked(record, 1)
    heard = Heard()
    engine.submit(first, heard)
    next_round = replace(first.prompt, ids=np.array([*first.prompt.ids, *heard.wait().tokens, 600]))
    again = Heard()
    engine.submit(Request(prompt=next_round, sampling=Sampling(max_new_tokens=2)), again)
    usage = again.wait().usage
    assert usage is not None
    assert usage.cached_tokens == len(next_round.ids) - 2, "all but the last token of the answer, and the new one"
    stats = engine.stats()
    assert (stats.image_hits, stats.image_misses) == (1, 1)
    assert stats.image_bytes > 0
    assert stats.prefix_bytes > 0
    assert (stats.answered, stats.tokens) == (2, 8)


def test_without_memory_for_caches_answers_are_the_same(record: Loaded, generator: Generator) -> None:
    engine = Engine(generator, cache_gb=0)
    for _ in range(2):
        heard = Heard()
        engine.submit(asked(record, 2), heard)
        assert heard.wait().tokens == alone(generator, asked(record, 2))
    assert engine.stats().image_hits == 0
    engine.close(within_s=0)


def test_a_folder_keeps_images_for_the_next_start(record: Loaded, generator: Generator, tmp_path: Path) -> None:
    for hits in (0, 1):
        engine = Engine(generator, cache_dir=tmp_path / "images")
        assert not engine.notes
        heard = Heard()
        engine.submit(asked(record, 2), heard)
        assert heard.wait().tokens == alone(generator, asked(record, 2))
        engine.close(within_s=0)
        assert engine.stats().image_hits == hits


def test_a_model_whose_images_depend_on_the_text_before_them_gets_a_note_about_the_folder(tmp_path: Path) -> None:
    record = loaded("tiny_llama", "causal")
    engine = Engine(Generator(record.model, record.chat_tokenizer), cache_dir=tmp_path / "images")
    assert [str(tmp_path) in note for note in engine.notes] == [True]
    engine.close(within_s=0)
    assert not (tmp_path / "images").exists()


def test_the_end_token_ends_an_answer_and_is_not_heard(record: Loaded, generator: Generator, engine: Engine) -> None:
    request = asked(record, 1)
    first, second = alone(generator, request)[:2]
    assert first != second
    ends = replace(request, prompt=replace(request.prompt, end_id=second))
    heard = Heard()
    engine.submit(ends, heard)
    assert (heard.wait().tokens, heard.reason) == ([first], "stop")
    assert heard.usage is not None
    assert heard.usage.new_tokens == 2

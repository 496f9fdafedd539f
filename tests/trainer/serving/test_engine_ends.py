"""Requests that are cancelled, refused or fail, and an engine that closes: nobody else notices, and everybody hears."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import threading

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.support import model_batches
from tests.support.engines import Heard, Held, alone, asked, generator_of, small_engine
from tests.support.tiny_models import Loaded, loaded, prompt
from trainer.errors import QueueFullError, StoppingError, TooLongError
from trainer.inference.generate import Generator, Sampling
from trainer.inference.shared_rows import SharedRows
from trainer.inference.state_cache import StateCache
from trainer.serving.engine import Engine, Request

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
record = pytest.fixture(scope="module")(loaded)
generator = pytest.fixture(scope="module")(generator_of)
engine = pytest.fixture(small_engine)


def test_a_cancelled_request_ends_before_its_next_token(record: Loaded, generator: Generator, engine: Engine) -> None:
    held = Held(engine, asked(record, 1, tokens=50))
    other, waiting = Heard(), Heard()
    engine.submit(asked(record, 2), other)
    ticket = engine.submit(asked(record, 3), waiting)
    held.ticket.cancel()
    ticket.cancel()
    held.release()
    assert (held.heard.wait().reason, len(held.heard.tokens)) == ("cancelled", 1)
    assert (waiting.wait().reason, waiting.tokens) == ("cancelled", [])
    assert other.wait().tokens == alone(generator, asked(record, 2))
    held.ticket.cancel()  # after its end: nothing happens
    assert engine.stats().running == engine.stats().waiting == 0


def test_more_requests_than_the_queue_holds_are_refused(record: Loaded, engine: Engine) -> None:
    held = Held(engine, asked(record, 1))
    heard = [Heard() for _ in range(3)]
    for number, listener in enumerate(heard):
        engine.submit(asked(record, number), listener)
    assert engine.stats().waiting == 3
    with pytest.raises(QueueFullError, match="3 requests wait already"):
        engine.submit(asked(record, 1), Heard())
    held.release()
    for listener in heard:
        assert listener.wait().reason is not None
    assert held.heard.wait().reason is not None
    assert engine.stats().answered == 4


def test_a_prompt_without_room_for_an_answer_is_refused(generator: Generator, record: Loaded, engine: Engine) -> None:
    assert generator.limit is not None
    long = prompt(record, [400] * generator.limit)
    with pytest.raises(TooLongError):
        engine.submit(Request(prompt=long, sampling=Sampling()), Heard())


def test_closing_lets_requests_end_and_refuses_new_ones(record: Loaded, generator: Generator) -> None:
    engine = Engine(generator, batch=1)
    heard = [Heard(), Heard()]
    for number, listener in enumerate(heard):
        engine.submit(asked(record, number), listener)
    engine.close(within_s=60)
    assert [listener.tokens for listener in heard] == [alone(generator, asked(record, seed)) for seed in range(2)]
    with pytest.raises(StoppingError, match="is stopping"):
        engine.submit(asked(record, 1), Heard())
    engine.close(within_s=0)


def test_closing_cancels_what_does_not_end_in_time(record: Loaded, generator: Generator) -> None:
    engine = Engine(generator, batch=1)
    held = Held(engine, asked(record, 1, tokens=5000))
    waiting = Heard()
    engine.submit(asked(record, 2), waiting)
    closing = threading.Thread(target=engine.close, kwargs={"within_s": 0.01})
    closing.start()
    closing.join(0.3)  # cancels meanwhile
    held.release()
    closing.join(60)
    assert (held.heard.wait().reason, waiting.wait().reason) == ("cancelled", "cancelled")


def test_a_request_that_fails_fails_alone(record: Loaded, generator: Generator, engine: Engine) -> None:
    lost = asked(record, 1)
    lost.prompt.ids[lost.prompt.slots[0]] = 400  # the image has a position too few
    failed, fine = Heard(), Heard()
    engine.submit(lost, failed)
    engine.submit(asked(record, 2), fine)
    assert "positions" in str(failed.wait().error)
    assert fine.wait().tokens == alone(generator, asked(record, 2))


def test_a_prompt_that_fails_after_it_was_read_fails_alone(
    record: Loaded, generator: Generator, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        monkeypatch.undo()
        raise torch.OutOfMemoryError("CUDA out of memory")

    request = asked(record, 1, tokens=20)
    held, failed = Held(engine, request), Heard()
    monkeypatch.setattr(StateCache, "add_prefix", full)
    engine.submit(asked(record, 2), failed)
    held.release()
    assert isinstance(failed.wait().error, torch.OutOfMemoryError)
    assert held.heard.wait().tokens == alone(generator, request)


def test_an_error_of_the_model_fails_what_it_answers_and_the_next_requests_are_answered(
    record: Loaded, generator: Generator
) -> None:
    engine = Engine(generator, batch=2)
    held = Held(engine, asked(record, 1, tokens=20))
    other = Heard()
    engine.submit(asked(record, 3, tokens=20), other)

    def fail(*_: object, **__: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    calls: list[int] = []
    hook = record.model.decoder.base_model.get_submodule("layers.1").register_forward_pre_hook(fail)
    held.release()
    assert isinstance(held.heard.wait().error, torch.OutOfMemoryError)
    assert isinstance(other.wait().error, torch.OutOfMemoryError)
    assert (engine.failures.total, engine.failures.in_a_row) == (2, 2)
    assert engine.failures.last_error == "OutOfMemoryError: CUDA out of memory"
    hook.remove()
    fine = Heard()
    engine.submit(asked(record, 2), fine)
    assert fine.wait().tokens == alone(generator, asked(record, 2))
    assert (engine.failures.total, engine.failures.in_a_row) == (2, 0)
    assert engine.stats().running == 0
    engine.close(within_s=0)


def test_a_device_that_fails_ends_the_engine_and_everybody_hears_of_it(
    record: Loaded, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine = Engine(generator, batch=1)
    held, waiting = Held(engine, asked(record, 1, tokens=20)), Heard()
    engine.submit(asked(record, 2), waiting)
    for name in ("step", "reset"):
        monkeypatch.setattr(SharedRows, name, lost)
    held.release()
    assert "illegal memory" in str(held.heard.wait().error)
    assert "illegal memory" in str(waiting.wait().error)
    with pytest.raises(StoppingError):
        engine.submit(asked(record, 3), Heard())
    assert "illegal memory" in str(engine.failure)
    engine.close(within_s=0)


def test_a_listener_that_raises_loses_its_request_and_no_other(
    record: Loaded, generator: Generator, engine: Engine
) -> None:
    def leave(token: int) -> None:
        raise RuntimeError("the connection is closed")

    gone, fine = Heard(leave), Heard()
    engine.submit(asked(record, 1), gone)
    engine.submit(asked(record, 2), fine)
    assert gone.wait().reason == "cancelled"
    assert fine.wait().tokens == alone(generator, asked(record, 2))

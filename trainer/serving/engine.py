"""The engine: one thread that runs the model for all clients. Requests join and leave a running batch at every token.

Rules
- Tokens of a request are those that it would get alone: samples depend on its own seed and key, never on the batch.
- A request that cannot be answered fails alone; the others do not notice it.
- Between two tokens of running answers, at most one piece of a new prompt is read, so a long prompt does not stop them.

    engine = Engine(Generator(model, chat_tokenizer))
    ticket = engine.submit(Request(prompt=prompt, sampling=Sampling()), listener)
    engine.close(within_s=30)

Shapes: B running requests, V vocabulary.
"""

# ruff: noqa: N803 - names end in their shape

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch

from trainer.errors import QueueFullError, StoppingError, TrainError
from trainer.inference.caches import CacheSettings, print_note
from trainer.inference.generate import Generator, random_of
from trainer.inference.rows import Read
from trainer.serving.requests import EngineStats, Failures, Listener, Reason, Request, Usage

__all__ = ["Engine", "EngineStats", "Listener", "Reason", "Request", "Ticket", "Usage"]


class Engine:
    """Answers requests with one model. Methods may be called from any thread."""

    def __init__(
        self,
        generator: Generator,
        *,
        batch: int = 8,
        queue: int = 64,
        cache_gb: float = 1.0,
        cache_dir: Path | None = None,
        cache_dir_gb: float = 10.0,
        note: Callable[[str], None] = print_note,
    ) -> None:
        """batch: most requests that are answered together. queue: most that wait. cache_gb: memory of the caches.

        cache_dir: a folder for keys and values of images, kept after the engine ends; None: only memory. note: called
        with a line for the user about each problem of that folder. Afterwards `notes` has a line for everything that
        this model cannot have. Raises TrainError if the folder cannot be used.
        """
        self._generator, self._batch, self._queue = generator, batch, queue
        plan = generator.plan
        settings = CacheSettings(gb=cache_gb, folder=cache_dir, folder_gb=cache_dir_gb, note=note)
        self._cache, notes = settings.open(plan)
        self._rows = plan.open(batch, self._cache)
        self.notes = plan.notes + notes
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._reading: _Job | None = None
        self._running: list[_Job] = []
        """In the order of the rows"""
        self._is_closing = False
        self.failure: Exception | None = None
        """What the engine ended with by itself: the device failed, so that not even empty rows can be made"""
        self.failures = Failures()
        """Of the model, which may have answered again since"""
        self._answered = self._tokens = 0
        self._thread = threading.Thread(target=self._run, name="dsvl-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, listener: Listener) -> Ticket:
        """Queue a request. Raises QueueFullError, StoppingError, or TooLongError if there is no room for an answer."""
        job = _Job(request, listener, self._generator)
        with self._changed:
            if self._is_closing:
                raise StoppingError
            if len(self._waiting) >= self._queue:
                raise QueueFullError(self._queue)
            self._waiting.append(job)
            self._changed.notify_all()
        return Ticket(self, job)

    def stats(self) -> EngineStats:
        with self._changed:
            return EngineStats(
                running=len(self._running) + (self._reading is not None),
                waiting=len(self._waiting),
                answered=self._answered,
                tokens=self._tokens,
                image_hits=self._cache.hits,
                image_misses=self._cache.misses,
                image_bytes=self._cache.image_bytes,
                prefix_bytes=self._cache.prefix_bytes,
            )

    def close(self, *, within_s: float) -> None:
        """Refuse new requests, let those that were submitted end, and after `within_s` seconds cancel the rest."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(within_s)
        with self._changed:
            for job in (*self._waiting, *self._running, *([self._reading] if self._reading else [])):
                job.is_cancelled = True
            self._changed.notify_all()
        self._thread.join()

    def cancel(self, job: _Job) -> None:
        """End a request before its next token; see Ticket.cancel."""
        with self._changed:
            job.is_cancelled = True
            self._changed.notify_all()

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._drop_cancelled()
                self._step()
                self._read()
            except Exception as error:  # memory, for example: which request is the cause is unknown
                self._fail_all(error)

    def _fail_all(self, error: Exception) -> None:
        """Fail the requests that are being read or answered, and forget their rows, whatever state they are in."""
        try:
            self._rows.reset()
        except Exception as fatal:
            self.failure = fatal
        with self._changed:
            jobs = [*self._running, *([self._reading] if self._reading else [])]
            self._reading = None
            self._running.clear()
            if self.failure is not None:
                self._is_closing = True
                jobs += self._waiting
                self._waiting.clear()
        for job in jobs:
            self._fail(job, error)

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do. False: the engine is closed, and nothing is left to do."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._waiting or self._reading is not None or self._running or self._is_closing
            )
            return bool(self._waiting or self._reading is not None or self._running)

    def _drop_cancelled(self) -> None:
        with self._changed:
            dropped = [job for job in self._waiting if job.is_cancelled]
            self._waiting = deque(job for job in self._waiting if not job.is_cancelled)
            if self._reading is not None and self._reading.is_cancelled:
                dropped.append(self._reading)
                self._reading = None
        for job in (*dropped, *(job for job in self._running if job.is_cancelled)):
            self._finish(job, "cancelled")

    def _read(self) -> None:
        """Read a piece of the prompt that joins next."""
        with self._changed:
            if self._reading is None and self._waiting and len(self._running) < self._batch:
                self._reading = self._waiting.popleft()
            job = self._reading
        if job is None:
            return
        try:
            if job.pieces is None:
                job.pieces = self._rows.join(job.request.prompt)
            read = next(job.pieces)
        except Exception as error:  # whatever this prompt does to the model, the others are answered
            self._reading = None
            self._fail(job, error)
            return
        if read is not None:
            with self._changed:
                self._reading = None
                self._running.append(job)
            job.cached = read.cached
            self._choose([job], read.logits_V[None])

    def _step(self) -> None:
        """One token for every running request."""
        running = list(self._running)
        if not running:
            return
        self._choose(running, self._rows.step([job.last for job in running]))

    def _choose(self, jobs: list[_Job], logits_BV: torch.Tensor) -> None:
        """Choose the next token of each, and pass it to its listener."""
        for job, is_finite in zip(jobs, logits_BV.isfinite().all(-1).tolist(), strict=True):
            if not is_finite:
                self._fail(job, TrainError("the model's output is NaN or infinite for this prompt; use another one"))
        rows = [index for index, job in enumerate(jobs) if job in self._running]
        if not rows:
            return
        jobs = [jobs[index] for index in rows]
        tokens = self._generator.choose(
            logits_BV[rows],
            [job.request.prompt.end_id for job in jobs],
            [job.request.sampling for job in jobs],
            [job.random for job in jobs],
        )
        for job, token in zip(jobs, tokens, strict=True):
            self._take(job, token)

    def _take(self, job: _Job, token: int) -> None:
        job.last, job.new_tokens = token, job.new_tokens + 1
        self._tokens += 1
        if token == job.request.prompt.end_id:
            self._finish(job, "stop")
            return
        try:
            job.listener.token(token)
        except Exception:  # nobody listens any more
            self._finish(job, "cancelled")
            return
        if job.new_tokens == job.max_tokens:
            self._finish(job, "length")

    def _finish(self, job: _Job, reason: Reason) -> None:
        usage = Usage(prompt_tokens=len(job.request.prompt.ids), cached_tokens=job.cached, new_tokens=job.new_tokens)
        self._remove(job, keep=True)
        if job.new_tokens:
            self.failures = dataclasses.replace(self.failures, in_a_row=0)
        with suppress(Exception):
            job.listener.finished(reason, usage)

    def _fail(self, job: _Job, error: Exception) -> None:
        self._remove(job, keep=False)
        self.failures = self.failures.after(error)
        with suppress(Exception):
            job.listener.failed(error)

    def _remove(self, job: _Job, *, keep: bool) -> None:
        row = self._running.index(job) if job in self._running else None
        if row is not None:
            self._rows.leave(row, keep=keep)
        with self._changed:
            self._answered += 1
            if row is not None:
                last = self._running.pop()
                if row < len(self._running):
                    self._running[row] = last


class Ticket:
    """A request that was submitted."""

    def __init__(self, engine: Engine, job: _Job) -> None:
        self._engine, self._job = engine, job

    def cancel(self) -> None:
        """End it before its next token; its listener hears `finished("cancelled", ...)`, unless it has ended."""
        self._engine.cancel(self._job)


class _Job:
    """A request and how far it is."""

    def __init__(self, request: Request, listener: Listener, generator: Generator) -> None:
        """Raises TooLongError."""
        self.request, self.listener = request, listener
        self.max_tokens = generator.max_tokens(request.prompt, request.sampling)
        self.random = random_of(request.sampling, request.key)
        self.pieces: Iterator[Read | None] | None = None
        self.is_cancelled = False
        self.last = -1
        """The token that was chosen last, which the model has not read yet"""
        self.new_tokens = self.cached = 0

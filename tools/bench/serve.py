"""Measure the engine of `dsvl-train serve`: tokens/s of 8 clients against one, and what a known image saves.

    python -m tools.bench.serve [--sizes tiny,135M] [--tokens 48] [--repeats 3] [--only clients,images,http]

Models have random weights: what is measured does not depend on their values. All images have 576 tokens. The sides of a
ratio take turns, and the best of all repeats counts. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch

from tools.bench.data import machine
from tools.bench.serving.models import Model, made
from tools.bench.serving.over_http import ask_over_http, http_server
from tools.bench.training.goals import Goal, print_goals
from trainer.inference.cached_decoder import Prompt
from trainer.inference.generate import Sampling
from trainer.serving.engine import Engine, Reason, Request, Usage

T = TypeVar("T")

_QUESTIONS = itertools.count()
"""No question is asked twice"""
CLIENTS = 8
FASTER, SOONER = 2.5, 5.0
ATTENTIONS = ("mmca", "causal")


class Answer:
    """A listener that knows when its answer began and ended."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.first_s = 0.0
        self.usage: Usage | None = None
        self._ended = threading.Event()

    def token(self, token: int) -> None:
        self.first_s = self.first_s or time.perf_counter() - self.started

    def finished(self, reason: Reason, usage: Usage) -> None:
        self.usage = usage
        self._ended.set()

    def failed(self, error: Exception) -> None:
        raise SystemExit(f"the engine failed: {error}")

    def wait(self) -> Usage:
        self._ended.wait()
        assert self.usage is not None
        return self.usage


class Rate(NamedTuple):
    """Tokens a second, and a CPU second of this process: other programs change only the first."""

    tokens_per_s: float
    tokens_per_cpu_s: float

    def best(self, other: Rate) -> Rate:
        return Rate(*map(max, self, other))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="tiny,135M", help="decoders, by their names")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--questions", type=int, default=2, help="of each client")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the best counts")
    parser.add_argument("--only", default="clients,images,http")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    print(f"{machine()}, {torch.get_num_threads()} threads\n", flush=True)
    models = list(itertools.product(arguments.sizes.split(","), ATTENTIONS))
    goals: list[Goal] = []
    if "clients" in parts:
        print(f"| tokens/s | 1 client | {CLIENTS} clients | ratio | per CPU second |\n|---|---|---|---|---|")
        for size, attention in models:
            goals += bench_clients(made(size, attention), size, attention, arguments)
    if "images" in parts:
        print("\n| first token, ms | new image | known image | ratio | of CPU seconds |\n|---|---|---|---|---|")
        for size, attention in models:
            goals += bench_images(made(size, attention), size, attention, arguments.repeats)
    if "http" in parts:
        print(
            f"\n| tokens/s over HTTP | 1 client | {CLIENTS} clients | ratio | per CPU second |\n|---|---|---|---|---|"
        )
        for size, attention in models:
            goals.append(bench_http(made(size, attention), size, attention, arguments))
    print_goals(goals)


@contextmanager
def running(model: Model, cache_gb: float = 1.0) -> Iterator[Engine]:
    engine = Engine(model.generator, batch=CLIENTS, cache_gb=cache_gb)
    try:
        for note in engine.notes:
            print(f"note: {note}")
        yield engine
    finally:
        engine.close(within_s=0)


def bench_clients(model: Model, size: str, attention: str, arguments: argparse.Namespace) -> list[Goal]:
    """Tokens/s of all answers together, the reading of prompts included."""
    goals = []
    for images in ("known", "new"):
        rates = {1: Rate(0, 0), CLIENTS: Rate(0, 0)}
        with running(model) as engine:
            for number, clients in itertools.product(range(arguments.repeats + 1), rates):
                first_image = 0 if images == "known" else 1000 * (CLIENTS * number + clients)
                rate = _rate(engine, model, clients, first_image, arguments)
                if number:  # the first round shows the images that are known later
                    rates[clients] = rates[clients].best(rate)
        ratio = _print_rates(f"{size}, {attention}, {images} images", rates)
        what = f"tokens/s of {CLIENTS} clients against one, {size}, {attention}, {images} images"
        goals.append(Goal(what=what, got=ratio, expected=FASTER, at_least=True))
    return goals


def _rate(engine: Engine, model: Model, clients: int, first_image: int, arguments: argparse.Namespace) -> Rate:
    """Each client asks its questions one after the other, each about an image of its own."""
    sampling = Sampling(max_new_tokens=arguments.tokens)
    numbers = [range(client * arguments.questions, (client + 1) * arguments.questions) for client in range(clients)]
    prompts = [
        [model.prompt(next(_QUESTIONS), image=first_image + number, beginning=number) for number in own]
        for own in numbers
    ]

    def ask(prompt: Prompt) -> int:
        answer = Answer()
        engine.submit(Request(prompt=prompt, sampling=sampling), answer)
        return answer.wait().new_tokens

    return _together(ask, prompts)


def bench_http(model: Model, size: str, attention: str, arguments: argparse.Namespace) -> Goal:
    """The same with known images, through the server: JSON, base64, decoding, tokenizing."""
    rates = {1: Rate(0, 0), CLIENTS: Rate(0, 0)}
    with running(model) as engine, http_server(model, engine) as url:
        for number, clients in itertools.product(range(arguments.repeats + 1), rates):
            questions = [
                [(next(_QUESTIONS), client * arguments.questions + n) for n in range(arguments.questions)]
                for client in range(clients)
            ]
            rate = _together(lambda question: ask_over_http(url, *question, tokens=arguments.tokens), questions)
            if number:
                rates[clients] = rates[clients].best(rate)
    ratio = _print_rates(f"{size}, {attention}", rates)
    what = f"tokens/s of {CLIENTS} clients over HTTP, {size}, {attention}"
    return Goal(what=what, got=ratio, expected=FASTER, at_least=True)


def _print_rates(name: str, rates: Mapping[int, Rate]) -> float:
    """Returns the ratio of tokens a second."""
    few, many = rates[1], rates[CLIENTS]
    ratio, cpu_ratio = many.tokens_per_s / few.tokens_per_s, many.tokens_per_cpu_s / few.tokens_per_cpu_s
    print(f"| {name} | {few.tokens_per_s:.1f} | {many.tokens_per_s:.1f} | {ratio:.2f} | {cpu_ratio:.2f} |", flush=True)
    return ratio


def _together(ask: Callable[[T], int], questions: Sequence[Sequence[T]]) -> Rate:
    """Tokens of all clients, each of which asks its questions one after the other."""
    tokens: list[int] = []
    threads = [threading.Thread(target=lambda own=own: tokens.extend(map(ask, own))) for own in questions]
    start, cpu_start = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return Rate(sum(tokens) / seconds, sum(tokens) / cpu_seconds)


def bench_images(model: Model, size: str, attention: str, repeats: int) -> list[Goal]:
    """Seconds until the first token of a question about a new image, and of further questions about it."""
    kinds = ("new", "after the same beginning", "after another beginning")
    seconds, cpu_seconds = dict.fromkeys(kinds, float("inf")), dict.fromkeys(kinds, float("inf"))
    with running(model) as engine:
        for number, kind in itertools.product(range(repeats), kinds):
            beginning = 2 * number + (kind == "after another beginning")
            prompt = model.prompt(next(_QUESTIONS), image=10**6 + number, beginning=beginning)
            answer, cpu_start = Answer(), time.process_time()
            engine.submit(Request(prompt=prompt, sampling=Sampling(max_new_tokens=1)), answer)
            answer.wait()
            seconds[kind] = min(seconds[kind], answer.first_s)
            cpu_seconds[kind] = min(cpu_seconds[kind], time.process_time() - cpu_start)
    goals = []
    for kind in kinds[1:]:
        ratio, cpu_ratio = (times["new"] / times[kind] for times in (seconds, cpu_seconds))
        new_ms, known_ms = 1000 * seconds["new"], 1000 * seconds[kind]
        print(
            f"| {size}, {attention}, {kind} | {new_ms:.0f} | {known_ms:.0f} | {ratio:.1f} | {cpu_ratio:.1f} |",
            flush=True,
        )
        if attention == "mmca" or kind == "after the same beginning":
            what = f"first token about a known image {kind}, {size}, {attention}"
            goals.append(Goal(what=what, got=ratio, expected=SOONER, at_least=True))
    return goals


if __name__ == "__main__":
    main()

"""Measure the engine of `dsvl-train serve`: tokens/s of 8 clients against one, and what a known image saves.

    python -m tools.bench.serve [--sizes tiny,135M] [--tokens 48] [--repeats 3] [--only clients,images]

Models have random weights: what is measured does not depend on their values. All images have 576 tokens. The sides of a
ratio take turns, and the best of all repeats counts. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision
from dst import ChatTokenizer, load_template, load_tokenizer
from shards.format.manifest import BuildFacts, BuildLimits, TokenizerInfo
from shards.images.geometry import Geometry
from tools.bench.data import ROOT, machine
from tools.bench.training.goals import Goal, print_goals
from trainer.config.model import DecoderConfig, EncoderConfig, ModelConfig, ProjectorConfig
from trainer.inference.cached_decoder import Prompt
from trainer.inference.generate import Generator, Sampling
from trainer.model.build_model import build_model
from trainer.model.decoder import PRESETS
from trainer.model.vision_chat import VisionChatModel
from trainer.serving.engine import Engine, Reason, Request, Usage

_QUESTIONS = itertools.count()
"""No question is asked twice"""
CLIENTS = 8
FASTER, SOONER = 2.5, 5.0
ATTENTIONS = ("mmca", "causal")
SMOLLM2_135M: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
DINOV2_SMALL: dict[str, Any] = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 336,
    "patch_size": 14,
}
SIZES: dict[str, tuple[dict[str, Any], EncoderConfig]] = {
    "tiny": (
        PRESETS["tiny_llama"],
        EncoderConfig(kind="tiny", config={"image_size": 336, "patch_size": 14}),
    ),
    "135M": (SMOLLM2_135M, EncoderConfig(kind="hf", config=DINOV2_SMALL)),
}
"""Name -> decoder and encoder; all have 576 tokens an image"""
IMAGE_TOKENS = 576
QUESTION_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Model:
    """A generator, and prompts for it."""

    generator: Generator
    side: int

    def prompt(self, question: int, *, image: int, beginning: int = 0) -> Prompt:
        """Random words before an image and behind it; each number stands for other words or pixels."""
        image_id = self.generator.model.image_id
        before, behind = (
            np.random.Generator(np.random.PCG64(seed)).integers(300, 1000, length)
            for seed, length in (((beginning, 1), 4), ((question, 2), QUESTION_TOKENS))
        )
        pixels = torch.Generator().manual_seed(image)
        return Prompt(
            ids=np.concatenate([before, np.full(IMAGE_TOKENS, image_id), behind]).astype(np.int64),
            images=torch.randint(256, (1, 3, self.side, self.side), dtype=torch.uint8, generator=pixels),
            slots=(4,),
            end_id=self.generator.end_id,
        )


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES), help="decoders, by their names")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--questions", type=int, default=2, help="of each client")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the best counts")
    parser.add_argument("--only", default="clients,images")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    print(f"{machine()}, {torch.get_num_threads()} threads\n", flush=True)
    goals: list[Goal] = []
    for size, attention in itertools.product(arguments.sizes.split(","), ATTENTIONS):
        model = made(size, attention)
        if "clients" in parts:
            goals += bench_clients(model, size, attention, arguments)
        if "images" in parts:
            goals += bench_images(model, size, attention, arguments.repeats)
    print_goals(goals)


def made(size: str, attention: Any) -> Model:
    """A model with random weights."""
    decoder, encoder = SIZES[size]
    chat = ChatTokenizer(load_template("vicuna"), load_tokenizer(ROOT / "examples/tokenizer"))
    config = ModelConfig(
        encoder=encoder,
        projector=ProjectorConfig(kind="mlp"),
        decoder=DecoderConfig(config=decoder),
        attention=attention,
    )
    side = 336
    facts = BuildFacts(
        hash="0" * 64,
        template="vicuna",
        image=Geometry(size=side, fit="crop", pad_colour="clip", interpolation="bicubic", max_pixels=10**8),
        image_tokens=IMAGE_TOKENS,
        limits=BuildLimits(max_length=4096, max_images=8),
        tokenizer=TokenizerInfo(
            fingerprint="0" * 64,
            vocabulary_size=chat.tokenizer.vocabulary_size,
            image_id=chat.tokenizer.image_id,
            bos_token="<s>",
            eos_token="</s>",
        ),
        datasets={},
    )
    torch.manual_seed(0)
    model: VisionChatModel = build_model(config, facts).requires_grad_(False)
    return Model(Generator(model, chat), side)


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
        rates = {1: 0.0, CLIENTS: 0.0}
        with running(model) as engine:
            for number, clients in itertools.product(range(arguments.repeats + 1), rates):
                first_image = 0 if images == "known" else 1000 * (CLIENTS * number + clients)
                rate = _rate(engine, model, clients, first_image, arguments)
                if number:  # the first round shows the images that are known later
                    rates[clients] = max(rates[clients], rate)
        ratio = rates[CLIENTS] / rates[1]
        print(
            f"| {size}, {attention}, {images} images | {rates[1]:.1f} | {rates[CLIENTS]:.1f} | {ratio:.2f} |",
            flush=True,
        )
        what = f"tokens/s of {CLIENTS} clients against one, {size}, {attention}, {images} images"
        goals.append(Goal(what=what, got=ratio, expected=FASTER, at_least=True))
    return goals


def _rate(engine: Engine, model: Model, clients: int, first_image: int, arguments: argparse.Namespace) -> float:
    """Each client asks its questions one after the other, each about an image of its own."""
    tokens: list[int] = []
    sampling = Sampling(max_new_tokens=arguments.tokens)
    numbers = [range(client * arguments.questions, (client + 1) * arguments.questions) for client in range(clients)]
    prompts = [
        [model.prompt(next(_QUESTIONS), image=first_image + number, beginning=number) for number in own]
        for own in numbers
    ]

    def ask(own: list[Prompt]) -> None:
        for prompt in own:
            answer = Answer()
            engine.submit(Request(prompt=prompt, sampling=sampling), answer)
            tokens.append(answer.wait().new_tokens)

    threads = [threading.Thread(target=ask, args=(own,)) for own in prompts]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(tokens) / (time.perf_counter() - start)


def bench_images(model: Model, size: str, attention: str, repeats: int) -> list[Goal]:
    """Seconds until the first token of a question about a new image, and of further questions about it."""
    times: dict[str, float] = dict.fromkeys(
        ("new", "after the same beginning", "after another beginning"), float("inf")
    )
    with running(model) as engine:
        for number, kind in itertools.product(range(repeats), times):
            beginning = 2 * number + (kind == "after another beginning")
            prompt = model.prompt(next(_QUESTIONS), image=10**6 + number, beginning=beginning)
            answer = Answer()
            engine.submit(Request(prompt=prompt, sampling=Sampling(max_new_tokens=2)), answer)
            answer.wait()
            times[kind] = min(times[kind], answer.first_s)
    new_s = times.pop("new")
    goals = []
    for kind, seconds in times.items():
        ratio = new_s / seconds
        print(f"| {size}, {attention}, {kind} | {1000 * new_s:.0f} | {1000 * seconds:.0f} | {ratio:.1f} |", flush=True)
        if attention == "mmca" or kind == "after the same beginning":
            what = f"first token about a known image {kind}, {size}, {attention}"
            goals.append(Goal(what=what, got=ratio, expected=SOONER, at_least=True))
    return goals


if __name__ == "__main__":
    main()

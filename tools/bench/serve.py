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

    def prompt(self, seed: int, image: int | None = None) -> Prompt:
        """A question of random words about one image. image: its seed, if it is not the question's."""
        image_id = self.generator.model.image_id
        random = np.random.Generator(np.random.PCG64([seed, 1]))
        words = random.integers(300, 1000, QUESTION_TOKENS)
        pixels = torch.Generator().manual_seed(seed if image is None else image)
        return Prompt(
            ids=np.concatenate([words[:4], np.full(IMAGE_TOKENS, image_id), words[4:]]).astype(np.int64),
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
            goals.append(bench_clients(model, size, attention, arguments))
        if "images" in parts:
            goals.append(bench_images(model, size, attention, arguments.repeats))
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


def bench_clients(model: Model, size: str, attention: str, arguments: argparse.Namespace) -> Goal:
    """Tokens/s of all answers together: prompts with new images are read as well, so nothing comes from a cache."""
    rates = {1: 0.0, CLIENTS: 0.0}
    with running(model, cache_gb=0) as engine:
        for _ in range(arguments.repeats):
            for clients in rates:
                rates[clients] = max(rates[clients], _rate(engine, model, clients, arguments))
    ratio = rates[CLIENTS] / rates[1]
    print(f"| {size}, {attention} | {rates[1]:.1f} | {rates[CLIENTS]:.1f} | {ratio:.2f} |", flush=True)
    return Goal(what=f"tokens/s of {CLIENTS} clients, {size}, {attention}", got=ratio, expected=FASTER, at_least=True)


def _rate(engine: Engine, model: Model, clients: int, arguments: argparse.Namespace) -> float:
    tokens: list[int] = []
    sampling = Sampling(max_new_tokens=arguments.tokens)
    prompts = [[model.prompt(100 * client + n) for n in range(arguments.questions)] for client in range(clients)]

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


def bench_images(model: Model, size: str, attention: str, repeats: int) -> Goal:
    """Seconds until the first token of a question about a new image, and of another question about that image."""
    times = {"new": float("inf"), "known": float("inf")}
    with running(model) as engine:
        for number in range(repeats):
            for kind, seed in (("new", 10 * number), ("known", 10 * number + 1)):
                answer = Answer()
                prompt = model.prompt(1000 + seed, image=number)
                engine.submit(Request(prompt=prompt, sampling=Sampling(max_new_tokens=2)), answer)
                answer.wait()
                times[kind] = min(times[kind], answer.first_s)
    ratio = times["new"] / times["known"]
    print(
        f"| {size}, {attention} | {1000 * times['new']:.0f} | {1000 * times['known']:.0f} | {ratio:.1f} |", flush=True
    )
    what = f"first token about a known image, {size}, {attention}"
    return Goal(what=what, got=ratio, expected=SOONER if attention == "mmca" else 0, at_least=True)


if __name__ == "__main__":
    main()

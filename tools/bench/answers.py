"""Measure the answers of `dsvl-train eval`: with what is kept of images and prompts, against keeping nothing.

    python -m tools.bench.answers [--sizes tiny,mid] [--batches 8,16] [--images 8] [--tokens 16] [--repeats 3]

Two data sets of the same number of questions about images of 576 tokens: five about each image, in any order, and one
about each. The decoder that keeps nothing reads a batch padded on the left with a cache of transformers, as `eval` did
before. Models have random weights. The sides take turns, and the fewest CPU seconds of all repeats count.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from tools.bench.data import machine
from tools.bench.serving.models import Model, made
from tools.bench.training.goals import Goal, print_goals
from trainer.evaluation.length_batches import length_batches
from trainer.inference.cached_decoder import CachedDecoder, Prompt
from trainer.inference.caches import CacheSettings
from trainer.inference.generate import Generator, Sampling, random_of

PER_IMAGE = 5
AT_MOST = 1.05
"""Times the CPU seconds where no image comes twice"""
ATTENTIONS = ("mmca", "causal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="tiny,mid", help="decoders, by their names")
    parser.add_argument("--batches", default="8,16", help="questions at a time")
    parser.add_argument("--images", type=int, default=8, help="of the data set with five questions each")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the best counts")
    parser.add_argument("--attentions", default=",".join(ATTENTIONS))
    arguments = parser.parse_args()
    print(f"{machine()}, {torch.get_num_threads()} threads\n")
    print("| CPU seconds | nothing kept | kept | ratio | images read |\n|---|---|---|---|---|")
    goals: list[Goal] = []
    for size, attention, batch, per_image in itertools.product(
        arguments.sizes.split(","),
        arguments.attentions.split(","),
        map(int, arguments.batches.split(",")),
        (PER_IMAGE, 1),
    ):
        model = made(size, attention)
        name = f"{size}, {attention}, batch {batch}, {per_image} per image"
        num_questions = PER_IMAGE * arguments.images
        before, after, num_read = measured(model, num_questions, per_image, batch, arguments)
        print(
            f"| {name} | {before:.2f} | {after:.2f} | {after / before:.2f} | {num_read} of {num_questions} |",
            flush=True,
        )
        if per_image == 1:
            goals.append(Goal(what=f"CPU seconds, {name}", got=after / before, expected=AT_MOST, at_least=False))
    print_goals(goals)


def measured(
    model: Model, num_questions: int, per_image: int, batch: int, arguments: argparse.Namespace
) -> tuple[float, float, int]:
    """CPU seconds without and with what is kept, and how many images the latter read."""
    prompts = questions(model, num_questions, per_image)
    sampling = Sampling(max_new_tokens=arguments.tokens)
    lengths = {number: len(prompt.ids) for number, prompt in enumerate(prompts)}
    images = {number: prompt.images.numpy().tobytes() for number, prompt in enumerate(prompts)}
    seconds = [float("inf"), float("inf")]
    num_read = 0
    for _ in range(arguments.repeats):
        for side in (0, 1):
            generator = Generator(model.model, model.chat_tokenizer, CacheSettings())
            answer: Callable[[Sequence[Prompt], Sampling], object]
            if side:
                batches, answer = length_batches(lengths, batch, images), generator.batch
            else:
                batches, answer = length_batches(lengths, batch), partial(answered_alone, generator)
            start = time.process_time()
            for numbers in batches:
                answer([prompts[number] for number in numbers], sampling)
            seconds[side] = min(seconds[side], time.process_time() - start)
            num_read = generator.cache.misses
    return seconds[0], seconds[1], num_read


def questions(model: Model, count: int, per_image: int) -> list[Prompt]:
    """In any order; of each image the questions are about it alone."""
    numbers = list(range(count))
    random.Random(0).shuffle(numbers)
    return [model.prompt(number, image=number // per_image) for number in numbers]


@torch.no_grad()
def answered_alone(generator: Generator, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[int]]:
    """Answers of a decoder that has read nothing."""
    decoder = CachedDecoder(generator.model, len(prompts), generator.device)
    logits_BV = decoder.read_padded(prompts)  # noqa: N806 - ends in its shape
    positions = torch.tensor([[len(prompt.ids)] for prompt in prompts])
    end_ids = [prompt.end_id for prompt in prompts]
    randoms = [random_of(sampling, (number,)) for number in range(len(prompts))]
    answers: list[list[int]] = [[] for _ in prompts]
    is_open = [True] * len(prompts)
    while True:
        tokens = generator.choose(logits_BV, end_ids, [sampling] * len(prompts), randoms)
        for row, token in enumerate(tokens):
            if is_open[row]:
                answers[row].append(token)
                is_open[row] = token != end_ids[row] and len(answers[row]) < sampling.max_new_tokens
        if not any(is_open):
            return answers
        logits_BV = decoder.read_tokens(tokens, positions)  # noqa: N806
        positions = positions + 1


if __name__ == "__main__":
    main()

"""How much worse a model does with wrong images: the held-out loss and scores with the right ones, exchanged and blank.

Rule: all three are measured on the same samples, those that have images, so the differences are of pairs. Their
intervals take the samples of one image together, since these are not independent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch

from dst.common.progress import Advance
from shards import Build
from shards.errors import ShardError
from shards.loader import Batch, Loader
from trainer.errors import TrainError
from trainer.evaluation.blind_rows import BlindRow, WrongImages
from trainer.evaluation.captions import BLEU_ORDERS
from trainer.evaluation.held_out import SPLIT
from trainer.evaluation.metrics import Answered, score
from trainer.evaluation.shown_images import WRONG, Shown, ShownImages
from trainer.inference.conversation import Speaker
from trainer.inference.images import stack

ALL = "all"
"""The row over all datasets"""

_NORMAL_95 = 1.96
_OF_CORPORA = tuple(f"bleu_{order}" for order in BLEU_ORDERS)
"""Measures of all answers of a dataset together, which are not the mean of those of each"""


@dataclass(slots=True)
class _Sums:
    """Sums over samples with the same images, of each dataset: {group: value}."""

    weights: dict[int, float] = field(default_factory=dict)
    values: dict[Shown, dict[int, float]] = field(default_factory=lambda: {shown: {} for shown in get_args(Shown)})
    samples: int = 0

    def add(self, group: int, weight: float, values: Mapping[Shown, float]) -> None:
        self.samples += 1
        self.weights[group] = self.weights.get(group, 0.0) + weight
        for shown, value in values.items():
            self.values[shown][group] = self.values[shown].get(group, 0.0) + value

    def row(self, dataset: str, measure: str) -> BlindRow:
        right = self._mean("right")
        return BlindRow(
            dataset=dataset,
            measure=measure,
            samples=self.samples,
            right=right,
            exchanged=self._wrong("exchanged", right),
            blank=self._wrong("blank", right),
        )

    def _mean(self, shown: Shown) -> float:
        return sum(self.values[shown].values()) / sum(self.weights.values())

    def _wrong(self, shown: Shown, right: float) -> WrongImages:
        value = self._mean(shown)
        pairs = [
            (self.values[shown][group] - self.values["right"][group], weight) for group, weight in self.weights.items()
        ]
        return WrongImages(value=value, difference=value - right, margin=margin_of(pairs))


def margin_of(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Half the width of the 95% interval of sum(values) / sum(weights), by linearisation of the ratio; see W. G.
    Cochran, Sampling Techniques, chapter 6. pairs: (value, weight) of each independent group."""
    count = len(pairs)
    if count < 2:
        return None
    weights = sum(weight for _, weight in pairs)
    ratio = sum(value for value, _ in pairs) / weights
    squares = sum((value - ratio * weight) ** 2 for value, weight in pairs)
    return _NORMAL_95 * math.sqrt(count / (count - 1) * squares) / weights


def blind_losses(
    speaker: Speaker, build: Build, images: ShownImages, *, sequences: int, workers: int, advance: Advance
) -> list[BlindRow]:
    """The loss of each dataset and of all, after `prepare_for_loss`. Raises ShardError or TrainError.

    sequences: per batch. advance: called with the number of samples done.
    """
    loader = Loader(
        build,
        split=SPLIT,
        batch_size=sequences,
        max_length=build.manifest.config.limits.max_length,
        packed=speaker.model.separates_samples,
        workers=workers,
        decode="none",
    )
    sums: dict[str, _Sums] = {}
    for batch in loader:
        names = [name for sequence in batch.samples for name in sequence]
        losses = {shown: _losses(speaker, batch, shown, images) for shown in get_args(Shown)}
        for number, (dataset, key) in enumerate(names):
            sample = images.samples[key]
            if images.is_measured(sample.index):
                values = {shown: losses[shown][0][number] for shown in losses}
                for name in (dataset, ALL):
                    sums.setdefault(name, _Sums()).add(sample.group, losses["right"][1][number], values)
        advance(len(names))
    rows = [sums[name].row(name, "loss") for name in (*build.datasets, ALL) if name in sums]
    for row in rows:
        if not all(map(math.isfinite, (row.right, row.exchanged.value, row.blank.value))):
            raise TrainError(f"evaluation: the loss of {row.dataset} is NaN or infinite with some of the images")
    return rows if len(rows) != 2 else rows[:1]


def blind_scores(answers: Mapping[Shown, Sequence[Answered]], groups: Sequence[int]) -> list[BlindRow]:
    """The scores of the same questions with each kind of images. groups: of the images of each question."""
    scores = {shown: score(each) for shown, each in answers.items()}
    sums: dict[tuple[str, str], _Sums] = {}
    for number, answered in enumerate(answers["right"]):
        for measure in scores["right"].answers[number]:
            values = {shown: scores[shown].answers[number][measure] for shown in answers}
            sums.setdefault((answered.dataset, measure), _Sums()).add(groups[number], 1.0, values)
    rows = []
    for right in scores["right"].datasets:
        wrong = {
            shown: next(row.metrics for row in scores[shown].datasets if row.dataset == right.dataset)
            for shown in WRONG
        }
        for measure, value in right.metrics.items():
            if measure not in _OF_CORPORA:
                rows.append(sums[right.dataset, measure].row(right.dataset, measure))
                continue
            exchanged, blank = (
                WrongImages(value=wrong[shown][measure], difference=wrong[shown][measure] - value, margin=None)
                for shown in WRONG
            )
            rows.append(
                BlindRow(
                    dataset=right.dataset,
                    measure=measure,
                    samples=right.num_answers,
                    right=value,
                    exchanged=exchanged,
                    blank=blank,
                )
            )
    return rows


def _losses(speaker: Speaker, batch: Batch, shown: Shown, images: ShownImages) -> tuple[list[float], list[int]]:
    """The loss of each sample, summed over its trained tokens, and their number."""
    pixels = stack(list(_pixels(batch, shown, images)), speaker.geometry.size)
    device = next(speaker.model.parameters()).device
    with torch.no_grad():
        tensors = {**batch.tensors(), "images": pixels}
        loss = speaker.model(**{name: tensor.to(device) for name, tensor in tensors.items()}, reduction="sample")
    return loss.per_sample.double().tolist(), loss.per_sample_tokens.tolist()


def _pixels(batch: Batch, shown: Shown, images: ShownImages) -> Iterator[torch.Tensor]:
    """The tiles of each image of a batch; those of samples that are not measured stay right."""
    first = 0
    for _, key in (name for sequence in batch.samples for name in sequence):
        sample = images.samples[key]
        end = first + sample.num_images
        if sample.num_images:
            own = shown if images.is_measured(sample.index) else "right"
            yield from images.pixels(own, sample.index, batch.stored_images[first:end], batch.grids[first:end])
        first = end
    if first != len(batch.stored_images):
        raise ShardError(
            f"a batch has {len(batch.stored_images)} images, and its samples {first}; see dsvl-prep verify"
        )


def left_out(images: ShownImages) -> Iterator[str]:
    """Lines about samples that are not among the measured ones."""
    without = Counter(sample.dataset for sample in images.samples.values() if not sample.num_images)
    for dataset, count in sorted(without.items()):
        yield f"{dataset}: {count} held-out samples without images are not among these"
    for dataset, count in images.without_other().items():
        yield f"{dataset}: {count} held-out samples are not among these: no other sample shows other images"

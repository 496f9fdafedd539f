"""What the frozen encoder's features say about the questions: a linear classifier on photos that it has not seen.

It bounds what a projector and a decoder can learn from so few photos. Features are the mean and the maximum over the
patches; the classifier is a ridge regression on answers of -1 and 1, of five folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

import trainer.compat  # noqa: F401 - before transformers
from tools.evidence.data import Photo, Question, image_folder, questions, read_photos

FOLDS = 5
RIDGE = 0.3
"""Of the mean squared length of the features"""


def probe(source: Path, encoder: Path, layer: int, image_size: int) -> dict[str, float]:
    """Question -> share of photos for which the classifier is right, with the features of a layer of DINOv2."""
    photos = list(read_photos(source))
    features = features_of([image_folder(source) / photo.image for photo in photos], encoder, layer, image_size)
    return accuracies(photos, questions(photos), features)


def features_of(files: Sequence[Path], encoder: Path, layer: int, image_size: int) -> Any:
    """[N, 2W]: mean and maximum over patches, each column normalised."""
    import torch
    from transformers import Dinov2Model

    mean, std = numpy.array((0.485, 0.456, 0.406)), numpy.array((0.229, 0.224, 0.225))
    pixels = []
    for file in files:
        with Image.open(file) as image:
            small = image.convert("RGB").resize((image_size, image_size), Image.Resampling.BICUBIC)
        pixels.append(((numpy.asarray(small) / 255 - mean) / std).transpose(2, 0, 1))
    model: Any = Dinov2Model.from_pretrained(encoder)
    model.eval()

    def hidden(batch: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = model(pixel_values=batch, output_hidden_states=True).hidden_states[layer]
        return output

    whole = torch.tensor(numpy.array(pixels), dtype=torch.float32)
    batches = [whole[first : first + 32] for first in range(0, len(whole), 32)]
    with torch.no_grad():
        patches = torch.cat([hidden(batch)[:, 1:] for batch in batches]).numpy()
    features = numpy.concatenate([patches.mean(axis=1), patches.max(axis=1)], axis=1)
    return (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)


def accuracies(photos: Sequence[Photo], asked: Sequence[Question], features: Any) -> dict[str, float]:
    """Over all folds; a photo's fold is its number in the file, so the same in each question."""
    number_of = {photo.image: number for number, photo in enumerate(photos)}
    result = {}
    for text in dict.fromkeys(question.question for question in asked):
        records = [(number_of[each.image], each.answer) for each in asked if each.question == text]
        first = min(answer for _, answer in records)
        rows = numpy.array([number for number, _ in records])
        truth = numpy.array([1.0 if answer == first else -1.0 for _, answer in records])
        right = 0
        for fold in range(FOLDS):
            test = rows % FOLDS == fold
            right += int(
                ((classify(features[rows[~test]], truth[~test], features[rows[test]]) > 0) == (truth[test] > 0)).sum()
            )
        result[text] = right / len(rows)
    return result


def classify(known: Any, truth: Any, unknown: Any) -> Any:
    """Ridge regression, in its dual form since features outnumber photos."""
    kernel = known @ known.T
    ridge = RIDGE * numpy.trace(kernel) / len(kernel) * numpy.eye(len(kernel))
    return unknown @ known.T @ numpy.linalg.solve(kernel + ridge, truth)

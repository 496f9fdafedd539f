"""What evaluations of tests measure: a build with held-out samples of every kind, and dialogues."""

from __future__ import annotations

import pytest

import shards
from shards import Build
from tests.support import small_blends
from tests.support.talks import PHOTOS
from tests.support.tiny_models import IMAGE_TOKENS, SIDE
from trainer.evaluation.dialogues import Dialogue, DialogueImage, Round
from trainer.inference.generate import Sampling

FEW = Sampling(max_new_tokens=5)


def ignore(amount: int) -> None:
    """Nobody wants to hear of progress."""


def make_build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A fixture: questions with ten answers, captions of which two are joined, chat of two rounds.

    The first two are only for evaluation, and half of the chat is held out.
    """
    folder = tmp_path_factory.mktemp("build")
    names = small_blends.write_images(folder / "mine", 12)
    small_blends.write_chat(
        folder / "mine",
        [small_blends.chat_record(number, images=names[number : number + 1], rounds=2) for number in range(12)],
    )
    root = str(small_blends.SAMPLES)
    blend = small_blends.write_blend(
        folder / "blend.yaml",
        [
            {"name": "vqa", "adapter": "vqa_v2", "root": root, "split": "eval"},
            {"name": "captions", "adapter": "coco_caption", "root": root, "concat": 2, "split": "eval"},
            {"name": "mine", "adapter": "chat", "root": "mine"},
        ],
        image_tokens=IMAGE_TOKENS,
        limits={"max_length": 512},
        image={"size": SIDE, "store": "original"},
        split={"eval": 0.5},
    )
    return shards.open(small_blends.build(blend).path)


def dialogues() -> list[Dialogue]:
    images = [DialogueImage(name=photo.name, path=photo) for photo in PHOTOS[:3]]
    return [
        Dialogue(
            id="buses",
            rounds=(
                Round(question="What is it?", images=(images[0],)),
                Round(question="And these, are they older?", images=(images[1], images[2])),
                Round(question="Why?"),
            ),
        ),
        Dialogue(id="words", rounds=(Round(question="Is </s> a word?"), Round(question="And <image>?"))),
        Dialogue(id="short", rounds=(Round(question="Look.", images=(images[1],)),)),
    ]

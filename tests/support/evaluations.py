"""What evaluations of tests measure: a build with held-out samples of every kind, and dialogues."""

from __future__ import annotations

from pathlib import Path

import pytest

import shards
from shards import Build
from tests.support import exports, small_blends
from tests.support.talks import PHOTOS
from tests.support.tiny_models import IMAGE_TOKENS, SIDE
from trainer.config.run import TrainConfig
from trainer.evaluation.dialogues import Dialogue, DialogueImage, Round
from trainer.export.export import export_model
from trainer.inference.generate import Sampling
from trainer.model.vision_chat import VisionChatModel
from trainer.training.assemble import assemble

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


def random_model(build: Build) -> tuple[VisionChatModel, TrainConfig]:
    encoder = {"kind": "tiny", "config": {"image_size": SIDE, "patch_size": 16}}
    config = exports.config_of(build, attention="mmca", encoder=encoder, projector={"kind": "linear"})
    return assemble(config, build.manifest.facts()).model, config


def make_exported(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixture: a random model with MMCA, exported."""
    model, config = random_model(build)
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_model(model, config, build, folder, step=7)
    return folder


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

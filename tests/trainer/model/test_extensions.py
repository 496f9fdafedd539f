"""Encoders and projectors of other packages: built like dsvl's own, and held to what they say of themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from dst.errors import ConfigError
from tests.support.extensions import write_module
from tests.support.manifests import build_facts
from trainer.config.kinds import ENCODER_KINDS, PROJECTOR_KINDS
from trainer.config.model import DecoderConfig, EncoderConfig, ModelConfig, ProjectorConfig
from trainer.errors import TrainError
from trainer.model.build_model import build_model, check_model
from trainer.model.encoders.registry import ENCODERS, build_encoder
from trainer.model.projectors import PROJECTORS, build_projector

ENCODER, PROJECTOR = "photo_extensions.convolutions:ENCODER", "photo_extensions.pooling:PROJECTOR"
FACTS = build_facts(image_size=32, image_tokens=4, max_length=64, vocabulary_size=100, image_id=99)

PARTS = """
import dataclasses
import torch
from torch import nn
from trainer.model.encoders.base import CLIP_MEAN, CLIP_STD, Tower
from trainer.model.projectors import Projector

class Means(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def checkpoint_activations(self):
        pass

    def forward(self, pixels):
        return (pixels.mean((2, 3)) * self.scale).unsqueeze(1)

def ENCODER(config, weights):
    return Tower(
        module=Means(), image_size=32, width=3, num_tokens=1, mean=CLIP_MEAN, std=CLIP_STD, portable=config
    )

class PROJECTOR(Projector):
    def __init__(self, config, width, tokens, hidden_size):
        super().__init__()
        self.num_tokens = 4
        self.linear = nn.Linear(width, 4 * hidden_size)

    def forward(self, features):
        return self.linear(features[:, 0]).unflatten(1, (4, -1))
"""
"""A module with an encoder that makes one token, and a projector that makes four of it"""


def model(encoder: str = "parts:ENCODER", projector: str = "parts:PROJECTOR", **settings: Any) -> ModelConfig:
    return ModelConfig(
        encoder=EncoderConfig(kind=encoder),
        projector=ProjectorConfig(kind=projector, **settings),
        decoder=DecoderConfig(preset="tiny_llama"),
    )


def test_the_kinds_that_a_configuration_may_name_are_those_of_the_tables() -> None:
    assert set(ENCODERS) == set(ENCODER_KINDS)
    assert set(PROJECTORS) == set(PROJECTOR_KINDS)


@pytest.mark.usefixtures("example_package")
def test_the_example_encoder_trains_and_its_portable_config_builds_it_again() -> None:
    config = EncoderConfig(kind=ENCODER, config={"image_size": 64, "width": 16})
    encoder = build_encoder(config)
    pixels = torch.randn(2, 3, 64, 64)
    features = encoder(pixels)
    assert features.shape == (2, encoder.num_tokens, encoder.width) == (2, 64, 16)
    features.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    again = build_encoder(encoder.portable, weights=False)
    again.load_state_dict(encoder.state_dict())
    again.checkpoint_activations()
    assert torch.equal(again(pixels), features)
    with pytest.raises(ConfigError, match=r"model\.encoder\.config: got image_size 60, width 64; expected multiples"):
        build_encoder(EncoderConfig(kind=ENCODER, config={"image_size": 60}))


@pytest.mark.usefixtures("example_package")
def test_the_example_projector_averages_squares_of_tokens() -> None:
    config = ProjectorConfig(kind=PROJECTOR, config={"side": 2})
    projector = build_projector(config, encoder_width=8, encoder_tokens=16, hidden_size=12)
    features = torch.randn(3, 16, 8)
    actual = projector(features)
    assert (projector.num_tokens, actual.shape) == (4, (3, 4, 12))
    corner = features[:, [2, 3, 6, 7]].mean(1)  # the second square of the first row
    mlp: Any = projector.mlp
    torch.testing.assert_close(actual[:, 1], mlp(corner))
    with pytest.raises(ConfigError, match=r"model\.projector\.config\.side: got 2, but the encoder makes 9 tokens"):
        build_projector(config, encoder_width=8, encoder_tokens=9, hidden_size=12)


def test_a_model_of_two_extensions_fits_its_build_or_says_what_does_not(module_folder: Path) -> None:
    write_module(module_folder, "parts", PARTS)
    assert check_model(model(), FACTS) == []
    made = build_model(model(), FACTS)
    assert made.encode(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 4, made.hidden_size)
    facts = build_facts(image_size=48, image_tokens=5, max_length=64, vocabulary_size=100, image_id=99)
    assert check_model(model(), facts) == [
        "model.encoder: takes images of 32 pixels but this build's have 48; choose another encoder, or rebuild with "
        "image: {size: 32}",
        "model.projector: makes 4 tokens per image but this build was compiled with 5; change model.projector.config, "
        "or rebuild with image_tokens: 4",
    ]


def test_parts_that_are_not_there_are_reported_together(module_folder: Path) -> None:
    write_module(module_folder, "parts", PARTS)
    assert check_model(model("parts:ENCODR", "nowhere:PROJECTOR"), FACTS) == [
        "model.encoder.kind: parts:ENCODR: parts has no ENCODR; did you mean ENCODER?",
        "model.projector.kind: nowhere:PROJECTOR: there is no module nowhere; install the package that has it, or add "
        "the folder that holds it to PYTHONPATH",
    ]
    assert check_model(model("parts:CLIP_MEAN", "parts:CLIP_STD"), FACTS) == [
        "model.encoder.kind: parts:CLIP_MEAN: got an object of type tuple; expected a function of an EncoderConfig "
        "and a bool that returns a Tower",
        "model.projector.kind: parts:CLIP_STD: got an object of type tuple; expected a class derived from Projector of "
        "trainer.model.projectors",
    ]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            "return Tower(",
            "return dict(",
            "kind: parts:ENCODER: it returned: got an object of type dict; expected a Tower",
        ),
        ("width=3", "width=3.0", "kind: parts:ENCODER: width: got 3.0; expected a whole number of at least 1"),
        ("mean=CLIP_MEAN", "mean=0.5", "kind: parts:ENCODER: mean: got 0.5; expected three numbers"),
        (
            "module=Means()",
            "module=Means",
            "kind: parts:ENCODER: module: got the class Means; expected a torch.nn.Module",
        ),
        (
            "def checkpoint_activations",
            "def other",
            "kind: parts:ENCODER: module: Means has no method checkpoint_activat",
        ),
        (
            "portable=config",
            "portable=dataclasses.replace(config, kind='tiny')",
            "kind: parts:ENCODER: portable: expected an EncoderConfig of the kind parts:ENCODER",
        ),
        (
            "    return Tower(",
            "    config.config['side']\n    return Tower(",
            " parts:ENCODER cannot be built: KeyError: 'side' (",
        ),
    ],
    ids=["no Tower", "width", "mean", "no module", "no checkpoints", "portable", "raises"],
)
def test_an_encoder_that_is_none_says_what_was_expected(
    before: str, after: str, expected: str, module_folder: Path
) -> None:
    assert before in PARTS
    write_module(module_folder, "parts", PARTS.replace(before, after, 1))
    with pytest.raises(ConfigError) as caught:
        build_encoder(EncoderConfig(kind="parts:ENCODER"))
    (line,) = caught.value.problems
    assert line.startswith(("model.encoder." if expected.startswith("kind") else "model.encoder:") + expected)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            "class PROJECTOR(Projector)",
            "class PROJECTOR(nn.Module)",
            "it returned: got an object of type PROJECTOR; exp",
        ),
        (
            "self.num_tokens = 4",
            "self.num_tokens = None",
            "num_tokens: got None; expected a whole number of at least 1",
        ),
        ("self.num_tokens = 4", "pass", "num_tokens: got None; expected a whole number of at least 1"),
    ],
    ids=["no Projector", "None", "missing"],
)
def test_a_projector_that_is_none_says_what_was_expected(
    before: str, after: str, expected: str, module_folder: Path
) -> None:
    assert before in PARTS
    write_module(module_folder, "parts", PARTS.replace(before, after, 1))
    with pytest.raises(ConfigError) as caught:
        build_projector(ProjectorConfig(kind="parts:PROJECTOR"), encoder_width=3, encoder_tokens=1, hidden_size=8)
    (line,) = caught.value.problems
    assert line.startswith(f"model.projector.kind: parts:PROJECTOR: {expected}")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            ".unsqueeze(1)",
            "",
            "model.encoder.kind: parts:ENCODER made [2, 3] of 2 images; expected [2, 1, 3]: the images, and",
        ),
        (".unsqueeze(1)", ".tolist()", "model.encoder.kind: parts:ENCODER made an object of type list of 2 images; "),
        (
            "(4, -1)",
            "(2, -1)",
            "model.projector.kind: PROJECTOR made [2, 2, 128] of 2 images; expected [2, 4, 64]: the images, its",
        ),
    ],
    ids=["features", "no tensor", "embeddings"],
)
def test_output_of_another_shape_than_promised_ends_the_first_step(
    before: str, after: str, expected: str, module_folder: Path
) -> None:
    assert before in PARTS
    write_module(module_folder, "parts", PARTS.replace(before, after, 1))
    made = build_model(model(), FACTS)
    with pytest.raises(TrainError) as caught:
        made.encode(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert str(caught.value).startswith(expected)

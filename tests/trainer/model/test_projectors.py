"""Projectors: shapes, what each is made of, and heads that do not fit."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

import trainer.compat  # noqa: F401  # before transformers, which looks for torchvision
from dst.errors import ConfigError
from trainer.config.model import ProjectorConfig
from trainer.model.projectors import PROJECTORS, Linear, PixelShuffle, Projector, build_projector

KINDS = sorted(PROJECTORS)
TOKENS = {kind: 16 if kind == "pixel_shuffle" else 6 for kind in KINDS}


def make(kind: str, **options: int) -> Projector:
    torch.manual_seed(0)
    config = ProjectorConfig(kind=kind, **{"num_heads": 2, "num_queries": 5, **options})  # type: ignore[arg-type]
    return build_projector(config, encoder_width=8, encoder_tokens=TOKENS[kind], hidden_size=12).double()


@pytest.mark.parametrize("kind", KINDS)
def test_every_projector_gives_as_many_embeddings_as_it_says(kind: str) -> None:
    projector = make(kind)
    assert projector.num_tokens == {"perceiver": 5, "pixel_shuffle": 4}.get(kind, 6)
    actual = projector(torch.randn(3, TOKENS[kind], 8).double())
    assert actual.shape == (3, projector.num_tokens, 12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_and_images_do_not_mix(kind: str) -> None:
    projector = make(kind)
    features = torch.randn(3, TOKENS[kind], 8, dtype=torch.float64, requires_grad=True)
    actual = projector(features)
    (actual[1] * torch.randn_like(actual[1])).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in projector.parameters())
    assert features.grad is not None
    assert features.grad[1].abs().sum() > 0
    assert not features.grad[[0, 2]].any()


def test_linear_is_a_linear_map_and_a_norm() -> None:
    projector, features = make("linear"), torch.randn(2, 6, 8).double()
    assert isinstance(projector, Linear)
    mapped = features @ projector.linear.weight.T + projector.linear.bias
    normed = (mapped - mapped.mean(-1, keepdim=True)) / (mapped.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(projector(features), normed)


def test_mlp_is_two_linear_maps_with_a_gelu_between() -> None:
    projector, features = make("mlp"), torch.randn(2, 6, 8).double()
    shapes = {name: tuple(parameter.shape) for name, parameter in projector.named_parameters()}
    assert shapes == {
        "linear_1.weight": (12, 8),
        "linear_1.bias": (12,),
        "linear_2.weight": (12, 12),
        "linear_2.bias": (12,),
    }
    values = dict(projector.named_parameters())
    inner = features @ values["linear_1.weight"].T + values["linear_1.bias"]
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    torch.testing.assert_close(projector(features), inner @ values["linear_2.weight"].T + values["linear_2.bias"])


def test_pixel_shuffle_joins_the_four_patches_of_each_square() -> None:
    projector = build_projector(
        ProjectorConfig(kind="pixel_shuffle"), encoder_width=3, encoder_tokens=36, hidden_size=7
    ).double()
    assert isinstance(projector, PixelShuffle)
    grid = torch.randn(2, 6, 6, 3).double()  # row, column
    rows = []
    for row, column in itertools.product(range(0, 6, 2), repeat=2):
        square = [grid[:, row + down, column + right] for down in range(2) for right in range(2)]
        rows.append(torch.cat(square, dim=-1))
    joined = torch.stack(rows, dim=1)
    assert projector.num_tokens == joined.shape[1] == 9
    inner = nn.functional.gelu(projector.linear_1(projector.norm(joined)))
    torch.testing.assert_close(projector(grid.flatten(1, 2)), projector.linear_2(inner))


def test_pixel_shuffle_is_internvls() -> None:
    transformers: Any = pytest.importorskip("transformers")
    internvl = importlib.import_module("transformers.models.internvl.modeling_internvl")
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 24, "patch_size": 4}
    text = {"model_type": "qwen2", "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.InternVLConfig(vision_config=vision, text_config=text, downsample_ratio=0.5)
    original = internvl.InternVLMultiModalProjector(config).double()
    with torch.device("meta"):
        model = internvl.InternVLModel(config)
    projector = build_projector(
        ProjectorConfig(kind="pixel_shuffle"), encoder_width=8, encoder_tokens=36, hidden_size=12
    ).double()
    renamed = {name.replace("layer_norm", "norm"): value for name, value in original.state_dict().items()}
    projector.load_state_dict(renamed)
    features = torch.randn(2, 36, 8).double()
    shuffled = model.pixel_shuffle(features.view(2, 6, 6, 8), scale_factor=0.5)
    torch.testing.assert_close(projector(features), original(shuffled.flatten(1, 2)))


@pytest.mark.parametrize("tokens", [17, 25, 6])
def test_pixel_shuffle_needs_an_even_square_of_patches(tokens: int) -> None:
    with pytest.raises(ConfigError, match=rf"the encoder makes {tokens} tokens; expected a square with an even side"):
        build_projector(ProjectorConfig(kind="pixel_shuffle"), encoder_width=8, encoder_tokens=tokens, hidden_size=12)


def test_perceiver_reads_tokens_in_any_order_and_vit_keeps_theirs() -> None:
    features, order = torch.randn(2, 6, 8).double(), torch.randperm(6)
    perceiver, vit = make("perceiver"), make("vit")
    torch.testing.assert_close(perceiver(features[:, order]), perceiver(features))
    torch.testing.assert_close(vit(features[:, order]), vit(features)[:, order])
    assert not torch.allclose(make("mlp")(features)[:, 0], vit(features)[:, 0])


@pytest.mark.parametrize("queries", [1, 7])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_perceiver_has_the_queries_and_layers_asked_for(queries: int, layers: int) -> None:
    perceiver = make("perceiver", num_queries=queries, num_layers=layers)
    assert perceiver(torch.randn(2, 9, 8).double()).shape == (2, queries, 12)
    assert len(list(perceiver.layers)) == layers  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["perceiver", "vit"])
def test_heads_that_do_not_divide_the_width_are_refused(kind: str) -> None:
    with pytest.raises(
        ConfigError, match=r"heads: got 3, which does not divide the encoder's width 8; expected one of 1, 2, 4"
    ):
        make(kind, num_heads=3)
    make("mlp", num_heads=3)

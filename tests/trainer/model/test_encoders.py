"""Encoders of every kind hold exactly the parameters that their output takes, and are built again from their config."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")
pytest.importorskip("open_clip")

import torch
import yaml

from tests.support.tiny_encoders import OPEN_CLIP, SIDE, VISION, pixels, refused
from trainer.config.defaults import default_yaml
from trainer.config.model import EncoderConfig
from trainer.model.encoders.registry import ENCODERS, Encoder, build_encoder

QWEN = {"image_size": SIDE, "width": 16, "layers": 2, "heads": 2, "output_dim": 32, "n_queries": 4, "head_width": 8}
INLINE = {
    "open_clip": OPEN_CLIP,
    "hf": {"model_type": "clip_vision_model", **VISION},
    "qwen_vl": QWEN,
    "tiny": {"image_size": SIDE, "width": 16},
}


def test_the_encoder_of_the_printed_default_is_one_that_can_be_built() -> None:
    printed = yaml.safe_load(default_yaml())["model"]["encoder"]
    with torch.device("meta"):
        encoder = build_encoder(EncoderConfig(**printed), weights=False)
    assert (encoder.image_size, encoder.num_tokens) == (336, 576)


def test_qwen_vl_is_as_large_as_it_was_released() -> None:
    with torch.device("meta"):
        encoder = build_encoder(EncoderConfig(kind="qwen_vl"), weights=False)
    assert (encoder.image_size, encoder.num_tokens, encoder.width) == (448, 256, 4096)
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.tower.state_dict().items()}
    assert shapes["transformer.resblocks.47.mlp.c_fc.weight"] == (8192, 1664)
    assert shapes["attn_pool.kv_proj.weight"] == (4096, 1664)
    assert shapes["positional_embedding"] == (256, 1664)
    assert encoder.tower.get_submodule("attn_pool.attn").num_heads == 32


def inline(kind: str, **changes: Any) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(EncoderConfig(kind=kind, config=INLINE[kind], **changes))


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_every_parameter_of_an_encoder_is_used(kind: str) -> None:
    encoder = inline(kind)
    assert encoder(pixels()).shape == (2, encoder.num_tokens, encoder.width)
    (encoder(pixels()) * torch.randn(2, encoder.num_tokens, encoder.width)).sum().backward()
    idle = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert not idle


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_an_encoder_is_built_again_from_its_portable_config(kind: str) -> None:
    encoder = inline(kind, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 2.0)).eval()
    again = build_encoder(encoder.portable, weights=False).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(pixels()), encoder(pixels()))
    assert (again.mean, again.std) == (encoder.mean, encoder.std)
    json.dumps(encoder.portable.config)


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_recomputed_activations_give_the_same_gradients(kind: str) -> None:
    plain, again = inline(kind).train(), inline(kind).train()
    again.checkpoint_activations()
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    first = next(module for name, module in again.named_modules() if name.endswith(("layers.0", "resblocks.0")))
    next(module for module in first.modules() if isinstance(module, torch.nn.LayerNorm)).register_forward_hook(count)
    for encoder in (plain, again):
        encoder(pixels()).square().sum().backward()
    assert calls == 2
    for (name, one), other in zip(plain.named_parameters(), again.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_a_layer_that_is_not_there_is_refused() -> None:
    message = refused(EncoderConfig(kind="tiny", config=INLINE["tiny"], layer=-4))
    assert "layer: got -4, but the encoder has 3 layers; expected 1 to 3" in message


def test_a_class_token_that_is_not_there_is_refused() -> None:
    config = {"model_type": "siglip_vision_model", **VISION}
    assert "has no class token" in refused(EncoderConfig(kind="hf", config=config, class_token=True))


def test_other_architectures_are_refused() -> None:
    assert "expected one of clip_vision_model" in refused(EncoderConfig(kind="hf", config={"model_type": "llama"}))
    assert "ResNet" in refused(EncoderConfig(kind="open_clip", name="RN50"))
    assert "cannot be built" in refused(EncoderConfig(kind="hf", name="./no/such/folder"))

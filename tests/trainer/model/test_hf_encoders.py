"""Encoders of transformers give the hidden states of their layer, and take what they need of a folder."""

# ruff: noqa: E402 - torch and the libraries of models may be missing

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

transformers: Any = pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    LlavaConfig,
    SiglipVisionConfig,
)

from dst.errors import ConfigError
from tests.support.tiny_encoders import SIDE, VISION, pixels, refused
from trainer.config.model import EncoderConfig
from trainer.model.encoders.registry import build_encoder

HF: dict[str, Callable[[], Any]] = {
    "clip_vision_model": lambda: CLIPVisionConfig(**VISION),
    "siglip_vision_model": lambda: SiglipVisionConfig(**VISION),
    "dinov2": lambda: Dinov2Config(**VISION),
    "dinov2_with_registers": lambda: Dinov2WithRegistersConfig(**VISION, num_register_tokens=2),
    "internvl_vision": lambda: transformers.InternVLVisionConfig(**VISION),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """A folder with a complete transformers model of some kind, and the model."""
    made: dict[str, tuple[Path, Any]] = {}

    def get(kind: str) -> tuple[Path, Any]:
        if kind not in made:
            torch.manual_seed(0)
            auto: Any = AutoModel
            model = auto.from_config(HF[kind]()).eval()
            for parameter in model.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            folder = tmp_path_factory.mktemp(kind)
            model.save_pretrained(folder)
            made[kind] = folder, model
        return made[kind]

    return get


@pytest.mark.parametrize("layer", [1, 3, -1, -2])
@pytest.mark.parametrize("kind", sorted(HF))
def test_transformers_encoders_give_the_hidden_states_of_their_layer(
    kind: str, layer: int, whole: Callable[[str], tuple[Path, Any]]
) -> None:
    folder, model = whole(kind)
    expected = model(pixel_values=pixels(), output_hidden_states=True).hidden_states[layer]
    encoder = build_encoder(EncoderConfig(kind="hf", name=str(folder), layer=layer)).eval()
    assert (encoder.image_size, encoder.width, encoder.num_tokens) == (SIDE, 16, 4)
    torch.testing.assert_close(encoder(pixels()), expected[:, -4:])
    if kind != "siglip_vision_model":
        with_cls = build_encoder(EncoderConfig(kind="hf", name=str(folder), layer=layer, class_token=True)).eval()
        assert with_cls.num_tokens == 5
        torch.testing.assert_close(with_cls(pixels()), torch.cat([expected[:, :1], expected[:, -4:]], dim=1))


def test_the_default_layer_is_the_one_before_the_last(whole: Callable[[str], tuple[Path, Any]]) -> None:
    folder, _ = whole("clip_vision_model")
    default = build_encoder(EncoderConfig(kind="hf", name=str(folder))).eval()
    second = build_encoder(EncoderConfig(kind="hf", name=str(folder), layer=2)).eval()
    assert torch.equal(default(pixels()), second(pixels()))


def test_the_vision_half_of_a_whole_clip_is_taken(tmp_path: Path) -> None:
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    torch.manual_seed(0)
    whole_clip: Any = CLIPModel
    clip = whole_clip(CLIPConfig(vision_config=VISION, text_config=text)).eval()
    clip.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}')
    encoder = build_encoder(EncoderConfig(kind="hf", name=str(tmp_path))).eval()
    expected = clip.vision_model(pixel_values=pixels(), output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(encoder(pixels()), expected[:, 1:])
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (1, 2, 3))


def test_the_tower_of_a_whole_internvl_is_taken(tmp_path: Path) -> None:
    text = {"model_type": "qwen2", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    torch.manual_seed(0)
    config = transformers.InternVLConfig(
        vision_config=VISION, text_config={**text, "num_attention_heads": 1, "num_key_value_heads": 1}
    )
    whole_model = transformers.InternVLForConditionalGeneration(config).eval()
    whole_model.save_pretrained(tmp_path)
    encoder = build_encoder(EncoderConfig(kind="hf", name=str(tmp_path))).eval()
    tower = whole_model.model.vision_tower
    expected = tower(pixel_values=pixels(), output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(encoder(pixels()), expected[:, 1:])


@pytest.mark.parametrize(
    ("config_class", "start"),
    [(LlavaConfig, "set model.init_from: {} to train it, or "), (transformers.PaliGemmaConfig, "")],
)
def test_a_whole_model_with_a_decoder_is_not_an_encoder(config_class: Any, start: str, tmp_path: Path) -> None:
    config_class().save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as caught:
        build_encoder(EncoderConfig(kind="hf", name=str(tmp_path)))
    (line,) = caught.value.problems
    assert line.startswith(f"model.encoder: {tmp_path} is a whole {config_class.model_type}, of which this is a part")
    assert line.endswith(f"CLIP, SigLIP or InternVL; {start.format(tmp_path)}name the folder of its vision tower")


@pytest.mark.parametrize("kind", sorted(HF))
def test_another_image_size_interpolates_positions(kind: str, whole: Callable[[str], tuple[Path, Any]]) -> None:
    folder, model = whole(kind)
    encoder = build_encoder(EncoderConfig(kind="hf", name=str(folder), image_size=56, layer=-1)).eval()
    assert (encoder.image_size, encoder.num_tokens) == (56, 16)
    options = {} if kind.startswith(("dinov2", "internvl")) else {"interpolate_pos_encoding": True}
    expected = model(pixel_values=pixels(56), output_hidden_states=True, **options).hidden_states[-1]
    torch.testing.assert_close(encoder(pixels(56)), expected[:, -16:])


@pytest.mark.parametrize("kind", sorted(HF))
def test_nothing_idle_is_left_of_a_transformers_model(kind: str) -> None:
    encoder = build_encoder(EncoderConfig(kind="hf", config=HF[kind]().to_dict()))
    encoder(pixels()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize(
    "wrong",
    [{"patch_size": "1"}, {"num_attention_heads": 1.5}, {"layer_norm_eps": True}, {"hidden_size": -4}],
    ids=str,
)
def test_a_size_that_cannot_be_is_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model\.encoder: .* cannot be built: ") as caught:
        build_encoder(EncoderConfig(kind="hf", config={"model_type": "clip_vision_model", **VISION, **wrong}))
    assert [problem.count("\n") for problem in caught.value.problems] == [0]


def test_a_folder_that_lacks_weights_is_refused(whole: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> None:
    folder, _ = whole("clip_vision_model")
    weights = load_file(folder / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    kept = {name: value for name, value in weights.items() if "layers.2" not in name and "post_layernorm" not in name}
    config = EncoderConfig(kind="hf", name=str(tmp_path))
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    build_encoder(config)  # what is not read is not needed
    save_file({n: v for n, v in kept.items() if "layers.1" not in n}, tmp_path / "model.safetensors", {"format": "pt"})
    message = refused(config)
    assert "its files lack" in message
    assert "layers.1" in message

"""Encoders give the chosen layer's own output, with exactly the parameters that takes."""

# ruff: noqa: E402 - torch and the libraries of models may be missing

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

transformers: Any = pytest.importorskip("transformers")
open_clip = pytest.importorskip("open_clip")

import torch
import yaml
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
from trainer.config.defaults import default_yaml
from trainer.config.model import EncoderConfig
from trainer.model.encoders.registry import ENCODERS, Encoder, build_encoder

SIDE = 28
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 14,
}
HF: dict[str, Callable[[], Any]] = {
    "clip_vision_model": lambda: CLIPVisionConfig(**VISION),
    "siglip_vision_model": lambda: SiglipVisionConfig(**VISION),
    "dinov2": lambda: Dinov2Config(**VISION),
    "dinov2_with_registers": lambda: Dinov2WithRegistersConfig(**VISION, num_register_tokens=2),
}
OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": SIDE, "layers": 3, "width": 16, "head_width": 8, "patch_size": 14},
    "text_cfg": {"context_length": 4, "vocab_size": 10, "width": 8, "heads": 1, "layers": 1},
}
TIMM: dict[str, Any] = {  # timm's own tiny ViT, in the place of SigLIP's
    "embed_dim": 64,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
    "text_cfg": OPEN_CLIP["text_cfg"],
}
QWEN = {"image_size": SIDE, "width": 16, "layers": 2, "heads": 2, "output_dim": 32, "n_queries": 4, "head_width": 8}
INLINE = {
    "open_clip": OPEN_CLIP,
    "hf": {"model_type": "clip_vision_model", **VISION},
    "qwen_vl": QWEN,
    "tiny": {"image_size": SIDE, "width": 16},
}


def pixels(side: int = SIDE) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))


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
    assert line.endswith(f"CLIP or SigLIP; {start.format(tmp_path)}name the folder of its vision tower")


@pytest.mark.parametrize("kind", sorted(HF))
def test_another_image_size_interpolates_positions(kind: str, whole: Callable[[str], tuple[Path, Any]]) -> None:
    folder, model = whole(kind)
    encoder = build_encoder(EncoderConfig(kind="hf", name=str(folder), image_size=56, layer=-1)).eval()
    assert (encoder.image_size, encoder.num_tokens) == (56, 16)
    options = {} if kind.startswith("dinov2") else {"interpolate_pos_encoding": True}
    expected = model(pixel_values=pixels(56), output_hidden_states=True, **options).hidden_states[-1]
    torch.testing.assert_close(encoder(pixels(56)), expected[:, -16:])


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Names that open_clip knows our tiny models by."""
    folder = tmp_path_factory.mktemp("configs")
    for name, config in (("tiny-clip", OPEN_CLIP), ("tiny-timm", TIMM)):
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return {"own": "tiny-clip", "timm": "tiny-timm"}


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("layer", [1, -1, -2])
@pytest.mark.parametrize(("kind", "suffix"), [("own", ".pt"), ("own", ".safetensors"), ("timm", ".pt")])
def test_open_clip_encoders_give_what_their_layer_gives(
    kind: str, suffix: str, layer: int, cls: bool, registered: dict[str, str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model: Any = open_clip.create_model(registered[kind]).eval()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    blocks = model.visual.transformer.resblocks if kind == "own" else model.visual.trunk.blocks
    seen: list[torch.Tensor] = []
    blocks[layer - 1 if layer > 0 else layer].register_forward_hook(lambda _, __, out: seen.append(out))
    side = SIDE if kind == "own" else 160
    model.encode_image(pixels(side))
    encoder = build_encoder(
        EncoderConfig(kind="open_clip", name=registered[kind], weights=str(path), layer=layer, class_token=cls)
    ).eval()
    assert encoder.image_size == side
    torch.testing.assert_close(encoder(pixels(side)), seen[0] if cls else seen[0][:, 1:])
    assert encoder.num_tokens == seen[0].shape[1] - (not cls)


@pytest.mark.parametrize(
    ("name", "side", "tokens", "width", "mean"),
    [
        ("ViT-L-14-336", 336, 576, 1024, (0.48145466, 0.4578275, 0.40821073)),
        ("ViT-SO400M-14-SigLIP-384", 384, 729, 1152, (0.5, 0.5, 0.5)),
    ],
)
def test_the_sizes_and_means_of_known_models_are_reported_without_weights(
    name: str, side: int, tokens: int, width: int, mean: tuple[float, ...]
) -> None:
    with torch.device("meta"):
        encoder = build_encoder(EncoderConfig(kind="open_clip", name=name), weights=False)
    assert (encoder.image_size, encoder.num_tokens, encoder.width, encoder.mean) == (side, tokens, width, mean)


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


@pytest.mark.parametrize("kind", sorted(HF))
def test_nothing_idle_is_left_of_a_transformers_model(kind: str) -> None:
    encoder = build_encoder(EncoderConfig(kind="hf", config=HF[kind]().to_dict()))
    encoder(pixels()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


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


def refused(config: EncoderConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        build_encoder(config)
    return str(caught.value)


def test_a_layer_that_is_not_there_is_refused() -> None:
    message = refused(EncoderConfig(kind="tiny", config=INLINE["tiny"], layer=-4))
    assert "layer: got -4, but the encoder has 3 layers; expected 1 to 3" in message


def test_a_class_token_that_is_not_there_is_refused() -> None:
    config = {"model_type": "siglip_vision_model", **VISION}
    assert "has no class token" in refused(EncoderConfig(kind="hf", config=config, class_token=True))


def test_an_unknown_name_names_the_nearest() -> None:
    message = refused(EncoderConfig(kind="open_clip", name="ViT-L-14-363"))
    assert "open_clip has no model 'ViT-L-14-363'" in message
    assert "ViT-L-14-336" in message


def test_an_unknown_tag_names_those_there_are() -> None:
    message = refused(EncoderConfig(kind="open_clip", name="ViT-L-14-336", weights="opnai"))
    assert "neither a file nor a pretrained tag" in message
    assert "openai" in message


def test_weights_of_another_activation_are_refused() -> None:
    message = refused(EncoderConfig(kind="open_clip", name="ViT-L-14-336", weights="openai"))
    assert "expected name: ViT-L-14-336-quickgelu" in message


def test_other_architectures_are_refused() -> None:
    assert "expected one of clip_vision_model" in refused(EncoderConfig(kind="hf", config={"model_type": "llama"}))
    assert "ResNet" in refused(EncoderConfig(kind="open_clip", name="RN50"))
    assert "cannot be built" in refused(EncoderConfig(kind="hf", name="./no/such/folder"))


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


def test_a_pickle_that_holds_code_is_refused(registered: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": Path}, path)
    assert "cannot be built" in refused(EncoderConfig(kind="open_clip", name=registered["own"], weights=str(path)))

"""Encoders of open_clip give what their layer gives, and names that it does not know are refused."""

# ruff: noqa: E402 - torch and the libraries of models may be missing

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")
open_clip = pytest.importorskip("open_clip")

import torch
from safetensors.torch import save_file

from tests.support.tiny_encoders import OPEN_CLIP, SIDE, pixels, refused
from trainer.config.model import EncoderConfig
from trainer.model.encoders.registry import build_encoder

TIMM: dict[str, Any] = {  # timm's own tiny ViT, in the place of SigLIP's
    "embed_dim": 64,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
    "text_cfg": OPEN_CLIP["text_cfg"],
}


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


def test_a_pickle_that_holds_code_is_refused(registered: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": Path}, path)
    assert "cannot be built" in refused(EncoderConfig(kind="open_clip", name=registered["own"], weights=str(path)))

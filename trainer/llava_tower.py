"""A vision tower as transformers' LLaVA has it: a CLIPVisionModel or SiglipVisionModel at its own image size.

The rule: an open_clip tower is converted only if all of its parameters have a place there, and every tower that was
changed is held against the old one on one picture before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from trainer.encoders import Encoder, build_encoder
from trainer.errors import TrainError
from trainer.model_config import EncoderConfig

STANDARD = ("clip_vision_model", "siglip_vision_model")

_OPEN_CLIP = (
    (r"class_embedding", "embeddings.class_embedding"),
    (r"positional_embedding", "embeddings.position_embedding.weight"),
    (r"conv1\.weight", "embeddings.patch_embedding.weight"),
    (r"ln_pre\.(weight|bias)", r"pre_layrnorm.\1"),
    (r"transformer\.resblocks\.(\d+)\.ln_([12])\.(weight|bias)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", r"encoder.layers.\1.self_attn.{}_proj.\2"),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(weight|bias)", r"encoder.layers.\1.self_attn.out_proj.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(weight|bias)", r"encoder.layers.\1.mlp.fc1.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(weight|bias)", r"encoder.layers.\1.mlp.fc2.\2"),
)


def tower_refusals(encoder: Encoder) -> list[str]:
    """Why LLaVA has no such tower, a part of a sentence each; empty if it has."""
    kind = encoder.portable.kind
    if kind == "open_clip":
        return _open_clip_refusals(encoder)
    what = encoder.tower.model.config.model_type if kind == "hf" else kind
    return [] if what in STANDARD else [f"its encoder is {what}, LLaVA's is CLIP or SigLIP of transformers"]


def standard_encoder(old: Encoder) -> Encoder:
    """The encoder as such a tower; the same object if it is one already. Raises TrainError if it computes otherwise."""
    if old.portable.kind == "open_clip":
        made = _from_open_clip(old)
    elif old.tower.options:
        made = _at_size(old)
    else:
        return old
    _check_same(old, made)
    return made


def bare(name: str) -> str:
    """A parameter's name without a level of modules that some releases of transformers have."""
    return name.removeprefix("vision_model.")


def _open_clip_refusals(encoder: Encoder) -> list[str]:
    vision = encoder.portable.config["vision_cfg"]
    if vision.get("timm_model_name"):
        return [f"its encoder is timm's {vision['timm_model_name']}, LLaVA's is CLIP or SigLIP of transformers"]
    strange = [name for name in encoder.tower.visual.state_dict() if _clip_name(name) is None]
    if vision.get("no_ln_pre"):
        strange.append("no_ln_pre")
    if vision.get("act_kwargs"):
        strange.append("act_kwargs")
    if strange:
        return [f"its open_clip encoder has {strange[0]}, which CLIP of transformers does not"]
    return []


def _from_open_clip(old: Encoder) -> Encoder:
    visual, portable = old.tower.visual, old.portable
    block = visual.transformer.resblocks[0]
    sizes = {
        "model_type": "clip_vision_model",
        "hidden_size": old.width,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": portable.layer + 1,
        "num_attention_heads": block.attn.num_heads,
        "image_size": old.image_size,
        "patch_size": visual.conv1.kernel_size[0],
        "hidden_act": "quick_gelu" if portable.config.get("quick_gelu") else "gelu",
        "layer_norm_eps": visual.ln_pre.eps,
        "projection_dim": portable.config["embed_dim"],
    }
    weights = {}
    for name, tensor in visual.state_dict().items():
        place = _clip_name(name)
        assert place is not None, name
        if "{}" in place:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                weights[place.format(part)] = piece
        else:
            weights[place] = tensor
    return _filled(_standard(old, sizes, portable.layer), weights)


def _at_size(old: Encoder) -> Encoder:
    """A tower whose position embeddings are those that the old one interpolates each time."""
    model, portable = old.tower.model, old.portable
    embeddings = model.get_submodule(_embeddings(model))
    weights = {bare(name): tensor for name, tensor in model.state_dict().items()}
    patch = portable.config["patch_size"]
    extra = len(embeddings.position_embedding.weight) - (portable.config["image_size"] // patch) ** 2
    places = torch.zeros(1, (old.image_size // patch) ** 2 + extra, old.width)
    table = embeddings.interpolate_pos_encoding(places, old.image_size, old.image_size)[0]
    weights["embeddings.position_embedding.weight"] = table.detach()
    sizes = {**portable.config, "image_size": old.image_size}
    return _filled(_standard(old, sizes, portable.layer), weights)


def _standard(old: Encoder, sizes: Mapping[str, Any], layer: int) -> Encoder:
    config = EncoderConfig(
        kind="hf", config=dict(sizes), layer=layer, cls=old.portable.cls, mean=tuple(old.mean), std=tuple(old.std)
    )
    dtype = next(old.parameters()).dtype
    return build_encoder(config, weights=False).to(dtype).train(old.training)


def _filled(made: Encoder, weights: Mapping[str, torch.Tensor]) -> Encoder:
    """Weights by names without the prefix that some releases have; all of them, no more."""
    model = made.tower.model
    model.load_state_dict({name: weights[bare(name)] for name in model.state_dict()})
    assert len(weights) == len(model.state_dict())
    return made


def _check_same(old: Encoder, made: Encoder) -> None:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, old.image_size, old.image_size, generator=random)
    with torch.no_grad():
        wanted, got = (encoder.eval()(pixels.to(next(encoder.parameters()))) for encoder in (old, made))
    if not torch.allclose(got, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())):
        worst = float((got - wanted).abs().max())
        raise TrainError(
            f"the encoder as transformers has it differs by {worst:.2g} from the one that was trained; export it "
            "with the releases of open_clip and transformers that it was trained with"
        )


def _clip_name(name: str) -> str | None:
    for pattern, place in _OPEN_CLIP:
        if match := re.fullmatch(pattern, name):
            return match.expand(place)
    return None


def _embeddings(model: Any) -> str:
    return next(name for name, _ in model.named_modules() if name in ("embeddings", "vision_model.embeddings"))

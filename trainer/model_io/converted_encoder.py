"""An encoder as another class of transformers that computes the same: building it, filling it, comparing the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trainer.compat.transformers import bare
from trainer.config.model import EncoderConfig
from trainer.errors import TrainError
from trainer.model.encoders.registry import Encoder, build_encoder


def num_layers(encoder: Encoder) -> int:
    """Layers of an hf or open_clip tower, which ends with the layer that is read."""
    layers = encoder.portable.layer
    assert layers is not None, "these towers' portable configs name the layer"
    return layers


def hf_encoder(old: Encoder, hf_config: Mapping[str, Any]) -> Encoder:
    """A random encoder of kind hf that reads the same layer, with the same normalisation."""
    config = EncoderConfig(
        kind="hf",
        config=dict(hf_config),
        layer=num_layers(old),
        class_token=old.portable.class_token,
        mean=tuple(old.mean),
        std=tuple(old.std),
    )
    dtype = next(old.parameters()).dtype
    return build_encoder(config, weights=False).to(dtype).train(old.training)


def filled(new: Encoder, weights: Mapping[str, torch.Tensor]) -> Encoder:
    """Load weights, which are named without the prefix that some releases have; there must be exactly the model's."""
    model = new.tower.model
    model.load_state_dict({name: weights[bare(name)] for name in model.state_dict()})
    assert len(weights) == len(model.state_dict())
    return new


def check_same(old: Encoder, new: Encoder) -> None:
    """Compare their outputs for one image. Raises TrainError if they differ."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, old.image_size, old.image_size, generator=random)
    with torch.no_grad():
        before, after = (encoder.eval()(pixels.to(next(encoder.parameters()))) for encoder in (old, new))
    if not torch.allclose(after, before, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        worst = float((after - before).abs().max())
        raise TrainError(
            f"the encoder converted to transformers differs by {worst:.2g} from the one that was trained; export it "
            "with the releases of open_clip and transformers that it was trained with"
        )

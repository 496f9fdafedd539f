"""The kinds of encoders and projectors: dsvl's own, and where others are added. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Mapping

from dst.common.extensions import ExtensionPoint

ENCODER_KINDS = ("open_clip", "hf", "qwen_vl", "tiny")
"""Keys of trainer.model.encoders.registry.ENCODERS"""
PROJECTOR_KINDS = ("linear", "mlp", "perceiver", "pixel_shuffle", "vit")
"""Keys of trainer.model.projectors.PROJECTORS"""

ENCODER_POINT = ExtensionPoint(group="dsvl.encoders", what="encoder", built_in=ENCODER_KINDS, attribute="ENCODER")
PROJECTOR_POINT = ExtensionPoint(
    group="dsvl.projectors", what="projector", built_in=PROJECTOR_KINDS, attribute="PROJECTOR"
)
POINTS: Mapping[str, ExtensionPoint] = {"encoder": ENCODER_POINT, "projector": PROJECTOR_POINT}
"""By part of the model"""

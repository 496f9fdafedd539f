"""Models and parts of models that adapters are added to, and the layers that have one."""

from __future__ import annotations

from dataclasses import replace

from tests.support import model_batches
from tools.decoders.tiny import tiny_config
from trainer.config.model import DecoderConfig, EncoderConfig, LearningRates
from trainer.model.build_model import build_model
from trainer.model.vision_chat import VisionChatModel

FROZEN = LearningRates(projector=None)
CLIP = {"image_size": 28, "layers": 3, "width": 16, "head_width": 8, "patch_size": 14}
OPEN_CLIP = EncoderConfig(kind="open_clip", config={"embed_dim": 8, "vision_cfg": CLIP})


def adapted_names(model: VisionChatModel) -> set[str]:
    return {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}


def experts() -> VisionChatModel:
    """A model whose decoder has experts."""
    config = replace(model_batches.CONFIG, decoder=DecoderConfig(config=tiny_config("qwen3_moe")))
    return build_model(config, model_batches.facts()).eval()

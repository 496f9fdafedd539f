"""LLaVA folders as others publish them: tiny random models of transformers' own classes, saved by transformers."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from shards import Build
from tests.support.exports import CLIP, SIDE, tensors_in

Names = Literal["as saved", "published", "of the module"]
"""Of the weights: what the installed transformers writes; those of llava-1.5-7b-hf; those of a LLaVA in memory"""

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_theta": 5000.0,
}
CLIP_PROCESSOR: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "do_center_crop": True,
    "do_resize": True,
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
    "resample": 3,
    "image_mean": [0.48, 0.45, 0.4],
    "image_std": [0.26, 0.27, 0.28],
}


def write_llava(
    folder: Path,
    build: Build,
    *,
    text: dict[str, Any] = LLAMA,
    vision: dict[str, Any] = CLIP,
    names: Names = "as saved",
    max_shard_size: str = "5GB",
    spare_rows: int = 0,
    **settings: Any,
) -> Any:
    """A folder with the tokenizer of a build; returns the model, in float32.

    spare_rows: rows of the embeddings that no token has. settings: of LlavaConfig.
    """
    transformers: Any = importlib.import_module("transformers")
    tokenizer = build.manifest.tokenizer
    vocab_size = tokenizer.num_embeddings + spare_rows
    config = transformers.LlavaConfig(
        text_config={"vocab_size": vocab_size, **text},
        vision_config=vision,
        image_token_index=tokenizer.image_id,
        image_seq_length=build.manifest.facts().image_tokens,
        **settings,
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)  # biases and norms too, and large enough to be seen
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    shutil.copytree(build.tokenizer_folder(), folder, dirs_exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(CLIP_PROCESSOR), encoding="utf-8")
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": config.vision_config.patch_size,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    (folder / "processor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    if names != "as saved":
        assert max_shard_size == "5GB"
        renamed = {_renamed(name, names): tensor for name, tensor in tensors_in(folder).items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return model


def _renamed(name: str, names: Names) -> str:
    bare = re.sub(r"^model\.|(?<=vision_tower\.)vision_model\.", "", name)
    bare = re.sub(
        r"^language_model\.lm_head\.", "lm_head.", re.sub(r"^language_model\.model\.", "language_model.", bare)
    )
    with_level = bare.replace("vision_tower.", "vision_tower.vision_model.", 1)
    if names == "of the module":
        return with_level if bare.startswith("lm_head.") else f"model.{with_level}"
    if bare.startswith("lm_head."):
        return f"language_model.{bare}"
    return with_level.replace("language_model.", "language_model.model.", 1)

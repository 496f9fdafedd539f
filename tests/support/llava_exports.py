"""Parts of models that become LLaVA folders, or nearly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.exports import SIDE

SPARE_ROWS: dict[str, Any] = {  # more rows than the tokenizer has tokens
    "config": {
        "model_type": "llama",
        "vocab_size": 1300,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
}


def timm_vit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A fixture: makes open_clip's timm a tiny ViT of SigLIP's shape, with what is different.

    Returns the encoder's config.
    """
    timm: Any = pytest.importorskip("timm")
    vision_transformer: Any = timm.models.vision_transformer.VisionTransformer

    def vit(**different: Any) -> dict[str, Any]:
        sizes = {"img_size": SIDE, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 4, "class_token": False}

        def create_model(name: str, *, pretrained: bool, **options: Any) -> Any:
            return vision_transformer(**{**sizes, **options, **different})

        monkeypatch.setattr(timm, "create_model", create_model)
        vision = {"image_size": SIDE, "timm_model_name": "small_siglip", "timm_pool": "map", "timm_proj": "none"}
        return {"kind": "open_clip", "config": {"embed_dim": 32, "vision_cfg": vision}}

    return vit

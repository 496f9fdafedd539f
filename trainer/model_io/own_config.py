"""config.json of an export that is not a LLaVA folder.

After `import trainer`, transformers opens it: trainer.auto_classes reads what is written here. Without that import
transformers must refuse it with an understandable message. The Auto classes print a model_type that they do not know.
LLaVA's own class ignores it, but prints an unknown model_type of the text or vision configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config.extensions import KEY as EXTENSIONS

MODEL_TYPE = "dsvl_is-not-llava-import-trainer-first"
"""The same for all such exports; it is part of their format"""

MODEL_CLASS = "DsvlForConditionalGeneration"
"""In trainer.auto_classes.model"""


def own_config(
    *,
    parts: Mapping[str, Any],
    extensions: Mapping[str, Any],
    refusals: Sequence[str],
    dtype: str,
    image_id: int,
    image_tokens: int,
    num_embeddings: int,
) -> dict[str, Any]:
    """The file's content. parts, extensions: as in dsvl.json. refusals: why it is not a LLaVA model."""
    return {
        "architectures": [MODEL_CLASS],
        "model_type": MODEL_TYPE,
        "dtype": dtype,
        "image_token_index": image_id,
        "image_seq_length": image_tokens,
        "num_embeddings": num_embeddings,
        "parts": dict(parts),
        **({EXTENSIONS: dict(extensions)} if extensions else {}),
        "refusals": list(refusals),
        **refusing_sections(refusals),
    }


def refusing_sections(refusals: Sequence[str]) -> dict[str, Any]:
    """The sections that LLaVA's classes of transformers read, which then refuse with the reasons."""
    why = "; ".join(refusals)
    reason = (
        f"none, since this is not a LLaVA model: {why}. Open the folder with trainer.load of dsvl, or `import trainer` "
        "and take AutoModelForImageTextToText"
    )
    return {"text_config": {"model_type": reason}, "vision_config": {"model_type": reason}}

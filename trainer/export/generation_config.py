"""generation_config.json of an export: answers of `generate` are those of chat.

They end with the token that ends them in training, and contain no token that chat's answers do not have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dst import ChatTokenizer, Template, load_tokenizer
from shards import Manifest
from trainer.inference.generate import answer_controls, forbidden_ids


def generation_config(folder: Path, manifest: Manifest, num_rows: int) -> dict[str, Any]:
    """The file's content. folder: with the tokenizer. num_rows: of the decoder's head."""
    tokenizer = load_tokenizer(folder)
    chat = ChatTokenizer(Template(manifest.config.template, manifest.template), tokenizer)
    end_id, _ = answer_controls(chat)
    bos, eos = tokenizer.encode([tokenizer.bos_token, tokenizer.eos_token])
    return {
        "bos_token_id": bos[0] if bos else None,
        "eos_token_id": sorted({end_id, eos[0]}),
        "pad_token_id": eos[0],
        "suppress_tokens": forbidden_ids(chat, num_rows) or None,
    }

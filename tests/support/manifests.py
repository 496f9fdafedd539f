"""Manifests for tests: edited as somebody would who also fixes the hash, and what a model reads of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.format.manifest import BuildFacts, BuildLimits, TokenizerInfo
from shards.format.manifest_file import manifest_hash, manifest_text
from shards.images.geometry import Geometry


def manifest_document(folder: Path) -> dict[str, Any]:
    """The JSON object of a build's manifest."""
    document: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return document


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON object of a build's manifest, and write it with the hash that belongs to it."""
    document = manifest_document(folder)
    change(document)
    document["hash"] = manifest_hash(document)
    (folder / "manifest.json").write_bytes(manifest_text(document))


def build_facts(
    *, image_size: int, image_tokens: int, max_length: int, vocabulary_size: int, image_id: int
) -> BuildFacts:
    return BuildFacts(
        hash="0" * 64,
        template="visualchat",
        image=Geometry(size=image_size, fit="crop", pad_colour="clip", interpolation="bicubic", max_pixels=10**8),
        image_tokens=image_tokens,
        limits=BuildLimits(max_length=max_length, max_images=8),
        tokenizer=TokenizerInfo(
            fingerprint="0" * 64,
            vocabulary_size=vocabulary_size,
            image_id=image_id,
            bos_token="<s>",
            eos_token="</s>",
        ),
        datasets={},
    )

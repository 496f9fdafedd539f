"""Whether the counts of a manifest can be true, from the manifest alone.

Rule: a count that contradicts another one, or needs more bytes than a file has, is refused before anything is read or
allocated by it. That every file has what the manifest says is another question, which reading and `verify` answer.
"""

from __future__ import annotations

import math

from shards.format.manifest import SPLITS, DatasetInfo, Manifest
from shards.format.shard_info import ShardList
from shards.typed_json import field_error

TAR_ENTRY_BYTES = 1024
"""The least that a file takes in a tar: a header and a block"""

TOKEN_BYTES = 8
"""Of a token in tokens.npy: id and label"""

MOST_IDS = 1 << 31
"""Ids are int32"""


def check_counts(manifest: Manifest) -> None:
    """Raises FieldError for the first count that cannot be true."""
    tokenizer = manifest.tokenizer
    for name in ("vocabulary_size", "image_id"):
        if getattr(tokenizer, name) >= MOST_IDS:
            raise field_error(f"tokenizer.{name}", getattr(tokenizer, name), f"a number below {MOST_IDS}")
    for name, dataset in manifest.datasets.items():
        path = f"datasets.{name}"
        for split in SPLITS:
            _check_shards(dataset.shards[split], f"{path}.shards.{split}")
        _check_sums(dataset, path)


def _check_sums(dataset: DatasetInfo, path: str) -> None:
    if not (math.isfinite(dataset.share) and 0 <= dataset.share <= 1):
        raise field_error(f"{path}.share", dataset.share, "a number from 0 to 1")
    every = [dataset.shards[split] for split in SPLITS]
    sums: dict[str, tuple[int, int, str]] = {
        "records": (dataset.records, dataset.members + sum(dataset.rejects.values()), "members and rejects together"),
        "samples": (dataset.samples, sum(dataset.splits.values()), "those of its splits together"),
        "images": (dataset.images, sum(sum(shards.images) for shards in every), "those of its shards together"),
        "tokens": (
            dataset.tokens,
            sum(sum(shards.text_tokens) + sum(shards.images) for shards in every),
            "text_tokens and images of its shards together",
        ),
        "trained_tokens": (
            dataset.trained_tokens,
            sum(sum(shards.trained_tokens) for shards in every),
            "those of its shards together",
        ),
    }
    for split, shards in zip(SPLITS, every, strict=True):
        sums |= {f"splits.{split}": (dataset.splits[split], sum(shards.samples), "those of its shards together")}
    for name, (stated, counted, what) in sums.items():
        if stated != counted:
            raise field_error(f"{path}.{name}", stated, f"{counted}, {what}")


def _check_shards(shards: ShardList, path: str) -> None:
    columns = zip(
        shards.samples, shards.images, shards.text_tokens, shards.trained_tokens, shards.tar_sizes, strict=True
    )
    for number, (samples, images, text_tokens, trained_tokens, size) in enumerate(columns):
        least = TAR_ENTRY_BYTES * (samples + images) + TOKEN_BYTES * text_tokens
        if trained_tokens > text_tokens:
            raise field_error(f"{path}.{number}.trained_tokens", trained_tokens, f"at most text_tokens, {text_tokens}")
        if least > size:
            what = f"at least {least} bytes for {samples} samples, {images} images and {text_tokens} text tokens"
            raise field_error(f"{path}.{number}.size", size, what)

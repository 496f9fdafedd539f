"""A compile task: its input, and the open files and tokenizer that it works with.

Rule: a task is plain data. It can be sent to any process with access to the same files, and `key` covers everything
that can change its result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dst import ChatTokenizer, Template, load_tokenizer
from preprocess.compiler.decoded_images import DecodedImages, open_decoded
from preprocess.compiler.opened import open_dataset, written
from preprocess.compiler.spool import Spool
from preprocess.filters.rules import ImageRules
from preprocess.images.prepare import ImagePolicy
from preprocess.images.stores import StoreList
from shards import ShardInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContext:
    """The common input of all tasks of a dataset."""

    dataset: str
    build: Path
    """The build folder, where finished shards may be."""
    cache: Path
    spool: Path
    stores: tuple[Path, ...]
    tokenizer: Path
    template_name: str
    template: str
    image: ImagePolicy
    image_tokens: int
    max_length: int
    max_images: int
    max_tiles: int | None
    tiled: bool
    """Whether the build has tiles, in this dataset or another"""
    too_long: Literal["reject", "cut"]
    prompt: str | None
    concat: int
    share: int
    image_rules: ImageRules
    """Of the dataset's filter."""
    decoded: Path | None
    """The file of the images that need no further decoding; a result does not depend on it, and neither does a key."""
    url: str | None = None
    """Where shards are sent as soon as they are complete; None: they stay in the cache until a manifest names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileTask:
    """Conversations `rows` (numbers in the dataset's spool) of one split, which become its shard `number`."""

    context: TaskContext
    split: str
    number: int
    rows: npt.NDArray[np.int64]
    key: str

    @property
    def marker(self) -> Path:
        """The file of its result; it exists once the shard is complete."""
        return self.context.cache / "tasks" / f"{self.key[:32]}.json"

    @property
    def rejects(self) -> Path:
        """The file of its rejects, as lines of rejects.jsonl; it exists if there are any."""
        return self.marker.with_suffix(".rejects.jsonl")

    @property
    def digests(self) -> Path:
        """The file of the digests of the images that it read."""
        return self.marker.with_suffix(".images.npy")

    @property
    def staging(self) -> Path:
        """The folder of its shard until a manifest names it; below it, paths are those in the build."""
        return self.context.cache / "staged"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """The result of a task.

    ids: stored tokens. changed_ns: mtimes of the shard's tar and index; none if they are at a URL. filtered: rule of
    the filter -> records that it drops; they are among the rejects.
    """

    shard: ShardInfo | None
    changed_ns: tuple[int, ...]
    members: int
    ids: int
    notes: Mapping[str, int]
    rejects: Mapping[str, int]
    filtered: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TaskResult:
        """The inverse of `to_json`. Raises KeyError or TypeError if the fields are not those of a result."""
        shard = fields["shard"]
        found = {**fields, "shard": shard and ShardInfo(**shard), "changed_ns": tuple(fields["changed_ns"])}
        return cls(**found)


@dataclass(frozen=True, slots=True)
class Tools:
    chat: ChatTokenizer
    stores: StoreList
    spool: Spool
    decoded: DecodedImages | None


def open_tools(context: TaskContext) -> Tools:
    """Tokenizer, template and image stores; opened once per worker process and dataset."""
    return _open(context, written(context.spool, context.stores, context.cache))


@lru_cache(maxsize=4)
def _open(context: TaskContext, when: tuple[tuple[int, int], ...]) -> Tools:
    tokenizer = load_tokenizer(context.tokenizer, tried=True)
    chat = ChatTokenizer(Template(context.template_name, context.template), tokenizer)
    decoded = open_decoded(context.decoded) if context.decoded else None
    spool, stores = open_dataset(context.spool, context.stores, context.cache)
    return Tools(chat, stores, spool, decoded)

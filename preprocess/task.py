"""A compile task: what it reads, and the opened things it works with.

Rule: a task is plain data. It travels to any process that sees the same files, and `key` covers all that can change its
result.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dst import ChatTokenizer, Template, load_tokenizer
from preprocess.images import ImagePolicy
from preprocess.spool import Spool
from preprocess.stores import StoreList, open_stores


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContext:
    """What all tasks of a dataset share."""

    dataset: str
    build: Path
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
    concat: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileTask:
    """Conversations `rows` (numbers in the dataset's spool) of one split, to become shard `number` of it."""

    context: TaskContext
    split: str
    number: int
    rows: npt.NDArray[np.int64]
    key: str

    @property
    def marker(self) -> Path:
        return self.context.cache / "tasks" / f"{self.key[:32]}.json"


@dataclass(frozen=True, slots=True)
class Tools:
    chat: ChatTokenizer
    stores: StoreList
    spool: Spool


@lru_cache(maxsize=4)
def open_tools(context: TaskContext) -> Tools:
    """Opened once in each worker process for each dataset."""
    chat = ChatTokenizer(Template(context.template_name, context.template), load_tokenizer(context.tokenizer))
    return Tools(chat, open_stores(context.stores, context.cache), Spool(context.spool))

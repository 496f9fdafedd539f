"""Choices among words, such as which prompt asks for a caption.

Rule: a choice is a function of (seed, key) alone, so neither the order of records nor the number of workers matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import xxhash

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.fields import is_text
from preprocess.errors import DataError

T = TypeVar("T")


def choose(options: Sequence[T], seed: int, key: str) -> T:
    return options[xxhash.xxh3_64_intdigest(f"{seed}/{key}".encode()) % len(options)]


def prompts_of(request: Request) -> Sequence[str]:
    """The option `prompts`. Raises DataError unless it holds words to ask."""
    prompts = [item.strip() if isinstance(item, str) and is_text(item) else "" for item in request.options["prompts"]]
    if not prompts or not all(prompts):
        raise DataError("options.prompts holds no prompt, or one without words; give texts, or leave it out")
    return prompts

"""Choices between texts, such as the prompt that asks for a caption.

Rule: a choice is a function of (seed, key), so it depends neither on the order of records nor on the workers.
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
    """The option `prompts`. Raises DataError for an empty list, or a prompt without text."""
    prompts = [item.strip() if isinstance(item, str) and is_text(item) else "" for item in request.options["prompts"]]
    if not prompts or not all(prompts):
        raise DataError("options.prompts: got no prompt, or one without text; give texts, or remove the option")
    return prompts

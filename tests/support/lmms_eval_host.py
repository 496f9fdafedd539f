"""A stand-in for what trainer.lmms_eval uses of lmms-eval, which is too large to install for tests.

`make test-lmms-eval` runs the same classes in lmms-eval itself.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass
class GenerationResult:
    text: Any
    token_counts: TokenCounts | None = None


@dataclass
class Instance:
    """A request, with the arguments that its kind has in lmms_eval.api.task."""

    arguments: tuple[Any, ...]
    idx: int = 0

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class lmms:  # noqa: N801 - its name there
    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.task_dict: dict[str, Any] = {}

    @property
    def rank(self) -> int:
        return self._rank

    def clean(self) -> None:
        """Frees memory."""


@dataclass
class Task:
    """A task of one split: its documents, and what its definition makes of them."""

    documents: list[dict[str, Any]]
    kwargs: dict[str, Any] = field(default_factory=dict)
    name: str = "task"

    def put_into(self, model: Any) -> None:
        model.task_dict[self.name] = {"test": self.documents}

    def simple(self) -> list[Instance]:
        return [
            Instance((document["text"], dict(self.kwargs), lambda shown: shown["images"], *place))
            for document, place in self._places()
        ]

    def chat(self, messages: Callable[..., Any] | None = None) -> list[Instance]:
        def by_default(document: dict[str, Any]) -> list[dict[str, Any]]:
            images = [{"type": "image", "url": image} for image in document["images"]]
            return [{"role": "user", "content": [*images, {"type": "text", "text": document["text"]}]}]

        return [
            Instance((document["text"], messages or by_default, dict(self.kwargs), *place))
            for document, place in self._places()
        ]

    def choices(self, answers: list[str]) -> list[Instance]:
        return [
            Instance((document["text"], f" {answer}", lambda shown: shown["images"], *place), idx=number)
            for document, place in self._places()
            for number, answer in enumerate(answers)
        ]

    def _places(self) -> Iterator[tuple[dict[str, Any], tuple[int, str, str]]]:
        for number, document in enumerate(self.documents):
            yield document, (number, self.name, "test")


def model_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """trainer.lmms_eval.model as lmms-eval imports it."""
    contents: dict[str, dict[str, Any]] = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {
            "GenerationResult": GenerationResult,
            "Instance": Instance,
            "TokenCounts": TokenCounts,
        },
        "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "trainer.lmms_eval.model", raising=False)
    return importlib.import_module("trainer.lmms_eval.model")

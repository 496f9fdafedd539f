"""`decontaminate:` of a blend file: evaluation sets whose images and questions must not be trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dst.common.config_class import Positive, config_class
from preprocess.errors import ConfigError


@config_class
class EvaluationSet:
    images: str | None = None
    """A folder, an archive or a build with the set's images. Training records that show one of them are rejected."""
    match: Literal["bytes", "near"] = "near"
    """bytes: an image matches an equal file. near: also an image with equal pixels, or one that looks the same."""
    questions: str | None = None
    """A file with the set's questions: .txt (one a line), .jsonl or .json. Training records that repeat one are
    rejected."""
    question_key: str = "question"
    """The key of the question in an object of a .jsonl or .json file."""
    ngram: Positive = 13
    """A record repeats a question if they share this many words in a row; shorter questions match nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationInputs:
    """An evaluation set with the paths of its files."""

    keys: EvaluationSet
    images: Path | None
    questions: Path | None


def check_evaluation_sets(sets: Sequence[EvaluationSet]) -> list[str]:
    """Problems between keys, one line each."""
    return [
        f"decontaminate.{index}: got neither images nor questions; expected at least one of them"
        for index, one in enumerate(sets)
        if one.images is None and one.questions is None
    ]


def find_evaluation_sets(sets: Sequence[EvaluationSet], base: Path) -> tuple[EvaluationInputs, ...]:
    """The files of each set; relative paths start at `base`. Raises ConfigError with all that is missing."""
    problems = []
    inputs = []
    for index, keys in enumerate(sets):
        if urls := [path for path in (keys.images, keys.questions) if path and "://" in path]:
            problems.append(f"decontaminate.{index}: {urls[0]} is a URL; expected a local file or folder: download it")
            continue
        images, questions = (path and base / os.path.expanduser(path) for path in (keys.images, keys.questions))
        if images and not images.exists():
            problems.append(f"decontaminate.{index}.images: no {images}; expected a folder, an archive or a build")
        if questions and not questions.is_file():
            problems.append(f"decontaminate.{index}.questions: no file {questions}; expected .txt, .jsonl or .json")
        elif questions and questions.suffix not in (".txt", ".jsonl", ".json"):
            problems.append(f"decontaminate.{index}.questions: got {questions.name}; expected .txt, .jsonl or .json")
        inputs.append(EvaluationInputs(keys=keys, images=images or None, questions=questions or None))
    if problems:
        raise ConfigError(problems)
    return tuple(inputs)

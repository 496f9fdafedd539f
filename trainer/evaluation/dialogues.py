"""Evaluation dialogues in the format of DeepSpeed-VisualChat: rounds of questions without answers, with images.

    {"cats": [["Describe the image.", "cats/a.jpg"], ["And these?", "cats/b.jpg cats/c.jpg"], ["Which is older?"]]}

A JSON object, id -> rounds. A round is a question and the images that it adds: paths separated by spaces or, for paths
that contain spaces, a list of paths. Rules: all problems of a file are reported at once, each with its dialogue and
round; an image is never outside `root`, not through `..` or links either.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from trainer.errors import TrainError

_MOST_PROBLEMS = 20
_FORM = '{"id": [["question", "a.jpg b.jpg"], ["next question"]]}'


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogueImage:
    """An image: its name in the dialogues' file, and its path."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A question, and the images that this round adds, in order; the model sees those of earlier rounds too."""

    question: str
    images: tuple[DialogueImage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """One conversation with the model; at least one round."""

    id: str
    rounds: tuple[Round, ...]

    @property
    def images(self) -> tuple[DialogueImage, ...]:
        return tuple(image for round_ in self.rounds for image in round_.images)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A dialogue that cannot be held, and the names of its missing images."""

    id: str
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogues:
    """complete: in the file's order. left_out: empty unless `incomplete` is leave_out."""

    complete: tuple[Dialogue, ...]
    left_out: tuple[LeftOut, ...] = ()


def read_dialogues(
    path: Path, *, root: Path, prefix: str = "", incomplete: Literal["error", "leave_out"] = "error"
) -> Dialogues:
    """Read an evaluation file.

    root: the folder of the images. prefix: leading folders to remove from the file's paths ("eval/eval_data" if `root`
    is that folder). incomplete: what to do with a dialogue that lacks an image. Raises TrainError with all problems of
    the file.
    """
    if not root.is_dir():
        raise TrainError(f"{root}: is not a folder; expected the one with the images of {path}")
    parser = _RoundParser(root=root.resolve(), prefix=_parts(prefix), problems=[])
    dialogues = [
        Dialogue(id=name, rounds=tuple(parser.rounds(name, rounds)))
        for name, rounds in _load(path, parser.problems).items()
    ]
    _raise(path, parser.problems)
    missing: dict[str, tuple[str, ...]] = {
        dialogue.id: tuple(dict.fromkeys(image.name for image in dialogue.images if not _is_file(image.path)))
        for dialogue in dialogues
    }
    left_out = tuple(LeftOut(id=name, missing=names) for name, names in missing.items() if names)
    if incomplete == "error":
        _raise(
            path,
            [
                _missing(parser.root, dialogue, set(missing[dialogue.id]))
                for dialogue in dialogues
                if missing[dialogue.id]
            ],
        )
    return Dialogues(complete=tuple(item for item in dialogues if not missing[item.id]), left_out=left_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class _RoundParser:
    """Parses rounds and collects their problems."""

    root: Path
    prefix: tuple[str, ...]
    problems: list[str]

    def rounds(self, name: str, rounds: object) -> Iterator[Round]:
        if not name.strip() or not _is_text(name):
            self.problems.append(f"dialogue {name!r}: its id is blank or not valid text; expected a name")
        if type(rounds) is not list or not rounds:
            self.problems.append(f"dialogue {name!r}: got {_show(rounds)}; expected a list of one or more rounds")
            return
        for number, item in enumerate(rounds, start=1):
            round_ = self._round(f"dialogue {name!r}, round {number}", item)
            if round_:
                yield round_

    def _round(self, where: str, item: object) -> Round | None:
        if type(item) is not list or not 1 <= len(item) <= 2:
            self.problems.append(f"{where}: got {_show(item)}; expected [question] or [question, images]")
            return None
        question, names = item[0], item[1] if len(item) == 2 else []
        if type(question) is not str or not question.strip() or not _is_text(question):
            self.problems.append(f"{where}: its question is {_show(question)}; expected text that is not blank")
            return None
        if type(names) is str:
            names = names.split()
            if not names:
                self.problems.append(f"{where}: the text for its images is empty; remove it, or give paths")
        if type(names) is not list or not all(type(name) is str for name in names):
            self.problems.append(f"{where}: its images are {_show(names)}; expected text or a list of texts")
            return None
        images = [image for name in names if (image := self._image(where, name))]
        return Round(question=question.strip(), images=tuple(images))

    def _image(self, where: str, name: str) -> DialogueImage | None:
        problem = _path_problem(name)
        if problem:
            self.problems.append(f"{where}: the image {name!r} {problem}; expected a path in {self.root}")
            return None
        parts = _parts(name)
        if self.prefix:
            if parts[: len(self.prefix)] != self.prefix or len(parts) == len(self.prefix):
                self.problems.append(
                    f"{where}: the image {name!r} does not begin with the prefix {'/'.join(self.prefix)!r}; "
                    "expected a prefix of all images' paths, or none"
                )
                return None
            parts = parts[len(self.prefix) :]
        path = self.root.joinpath(*parts)
        try:
            is_inside = path.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError) as error:  # a link to itself, a name that is too long
            self.problems.append(f"{where}: the image {name!r} cannot be resolved: {error}")
            return None
        if not is_inside:
            self.problems.append(f"{where}: the image {name!r} is a link to a file outside {self.root}")
            return None
        return DialogueImage(name=name, path=path)


def _load(path: Path, problems: list[str]) -> dict[str, Any]:
    """The file's object. JSON allows a key twice, and the first value would be lost, so that is a problem."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        duplicates = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        problems.extend(
            f"dialogue {name!r}: is in the file more than once; give each its own id" for name in duplicates
        )
        return dict(pairs)

    try:
        text = path.read_bytes().decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=unique)
    except OSError as error:
        raise TrainError(f"{path}: cannot be read: {error.strerror}; expected a JSON file of dialogues") from None
    except UnicodeDecodeError as error:
        raise TrainError(f"{path}: is not UTF-8 (byte {error.start}); expected a JSON file of dialogues") from None
    except (ValueError, RecursionError) as error:
        raise TrainError(f"{path}: is not JSON: {error}") from None
    if type(content) is not dict or not content:
        raise TrainError(f"{path}: got {_show(content)}; expected an object of one or more dialogues: {_FORM}")
    return content


def _path_problem(name: str) -> str:
    """Why a name is not a relative path inside a folder; "" if it is one."""
    if not _is_text(name) or "\0" in name:
        return "has characters that no file name can have"
    if name.startswith("/") or "\\" in name or ":" in name.split("/", 1)[0]:
        return "is not a relative path"
    if ".." in name.split("/"):
        return "contains .."
    return "" if _parts(name) else "is empty"


def _parts(name: str) -> tuple[str, ...]:
    """`./a//b` as (a, b)."""
    return PurePosixPath(name).parts


def _missing(root: Path, dialogue: Dialogue, names: set[str]) -> str:
    """What a dialogue lacks and, if removing leading folders finds a file, the prefix to set."""
    missing = sorted(names)
    splits = ((parts[:index], parts[index:]) for parts in map(_parts, missing) for index in range(1, len(parts)))
    prefix = next(("/".join(before) for before, rest in splits if _is_file(root.joinpath(*rest))), None)
    hint = f"it exists with --prefix {prefix}" if prefix else "put it there, or set --leave-out"
    return f"dialogue {dialogue.id!r}: no file {', '.join(missing)} in {root}; {hint}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _raise(path: Path, problems: list[str]) -> None:
    if not problems:
        return
    more = len(problems) - _MOST_PROBLEMS
    lines = [f"{path}: {problem}" for problem in problems[:_MOST_PROBLEMS]]
    raise TrainError("\n".join([*lines, f"{path}: and {more} more problems"] if more > 0 else lines))


def _is_text(value: str) -> bool:
    """JSON can contain half of a surrogate pair, which is not valid text."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _show(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

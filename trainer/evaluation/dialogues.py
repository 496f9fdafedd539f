"""Evaluation dialogues in DeepSpeed-VisualChat's form: questions without answers, round after round, about pictures.

    {"cats": [["Describe the image.", "cats/a.jpg"], ["And these?", "cats/b.jpg cats/c.jpg"], ["Which is older?"]]}

A JSON object, id -> rounds; a round is a question and the pictures that come in with it: paths with spaces between
them, or, for paths that hold spaces, a list of paths. Rule: all problems of a file are told at once, each with its
dialogue and round, and a picture can never lie outside `root`, through `..` and links neither.
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
    """A picture: its name as the file writes it, and where it lies."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A question, and the pictures added in this round, in order; those of earlier rounds stay in sight."""

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
    """A dialogue that cannot be held, and the names of the pictures it lacks."""

    id: str
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogues:
    """complete: in the file's order. left_out: only if that was asked for."""

    complete: tuple[Dialogue, ...]
    left_out: tuple[LeftOut, ...] = ()


def read_dialogues(
    path: Path, *, root: Path, prefix: str = "", incomplete: Literal["error", "leave_out"] = "error"
) -> Dialogues:
    """Read an evaluation file.

    root: the folder of the pictures. prefix: leading folders that the file's paths have and `root` has not
    ("eval/eval_data" where `root` is that folder). incomplete: what to do with a dialogue that lacks a picture.
    Raises TrainError with every problem of the file.
    """
    if not root.is_dir():
        raise TrainError(f"{root}: is no folder; wanted the one that holds the pictures of {path}")
    reader = _Reader(root=root.resolve(), prefix=_parts(prefix), problems=[])
    dialogues = [
        Dialogue(id=name, rounds=tuple(reader.rounds(name, rounds))) for name, rounds in _load(path, reader).items()
    ]
    _raise(path, reader.problems)
    missing: dict[str, tuple[str, ...]] = {
        dialogue.id: tuple(dict.fromkeys(image.name for image in dialogue.images if not _is_file(image.path)))
        for dialogue in dialogues
    }
    left_out = tuple(LeftOut(id=name, missing=names) for name, names in missing.items() if names)
    if incomplete == "error":
        _raise(
            path,
            [_missing(reader, dialogue, set(missing[dialogue.id])) for dialogue in dialogues if missing[dialogue.id]],
        )
    return Dialogues(complete=tuple(item for item in dialogues if not missing[item.id]), left_out=left_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Makes rounds, and notes what is wrong with them."""

    root: Path
    prefix: tuple[str, ...]
    problems: list[str]

    def rounds(self, name: str, rounds: object) -> Iterator[Round]:
        if not name.strip() or not _is_text(name):
            self.problems.append(f"dialogue {name!r}: its id is no text with words; wanted a name")
        if type(rounds) is not list or not rounds:
            self.problems.append(f"dialogue {name!r}: got {_show(rounds)}; wanted a list of one or more rounds")
            return
        for number, item in enumerate(rounds, start=1):
            found = self._round(f"dialogue {name!r}, round {number}", item)
            if found:
                yield found

    def _round(self, where: str, item: object) -> Round | None:
        if type(item) is not list or not 1 <= len(item) <= 2:
            self.problems.append(f"{where}: got {_show(item)}; wanted [question] or [question, pictures]")
            return None
        question, names = item[0], item[1] if len(item) == 2 else []
        if type(question) is not str or not question.strip() or not _is_text(question):
            self.problems.append(f"{where}: its question is {_show(question)}; wanted a text with words")
            return None
        if type(names) is str:
            names = names.split()
            if not names:
                self.problems.append(f"{where}: the text for its pictures is empty; leave it out, or give paths")
        if type(names) is not list or not all(type(name) is str for name in names):
            self.problems.append(f"{where}: its pictures are {_show(names)}; wanted a text or a list of texts")
            return None
        images = [image for name in names if (image := self._image(where, name))]
        return Round(question=question.strip(), images=tuple(images))

    def _image(self, where: str, name: str) -> DialogueImage | None:
        problem = _path_problem(name)
        if problem:
            self.problems.append(f"{where}: the picture {name!r} {problem}; wanted a path below {self.root}")
            return None
        parts = _parts(name)
        if self.prefix:
            if parts[: len(self.prefix)] != self.prefix or len(parts) == len(self.prefix):
                self.problems.append(
                    f"{where}: the picture {name!r} does not lie below the prefix {'/'.join(self.prefix)!r}; "
                    "wanted one that all pictures' paths begin with, or none"
                )
                return None
            parts = parts[len(self.prefix) :]
        path = self.root.joinpath(*parts)
        try:
            inside = path.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError) as error:  # a link that leads to itself, a name that is too long
            self.problems.append(f"{where}: the picture {name!r} cannot be looked up: {error}")
            return None
        if not inside:
            self.problems.append(f"{where}: the picture {name!r} is a link that leads out of {self.root}")
            return None
        return DialogueImage(name=name, path=path)


def _load(path: Path, reader: _Reader) -> dict[str, Any]:
    """The file's object. JSON lets a key stand twice, and the first of them would be lost."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        reader.problems.extend(
            f"dialogue {name!r}: stands in the file more than once; give each its own id" for name in twice
        )
        return dict(pairs)

    try:
        text = path.read_bytes().decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=unique)
    except OSError as error:
        raise TrainError(f"{path}: cannot be read: {error.strerror}; wanted a JSON file of dialogues") from None
    except UnicodeDecodeError as error:
        raise TrainError(f"{path}: is no UTF-8 (byte {error.start}); wanted a JSON file of dialogues") from None
    except (ValueError, RecursionError) as error:
        raise TrainError(f"{path}: is no JSON: {error}") from None
    if type(content) is not dict or not content:
        raise TrainError(f"{path}: got {_show(content)}; wanted an object of one or more dialogues: {_FORM}")
    return content


def _path_problem(name: str) -> str:
    """Why a name is no path below a folder; "" if it is one."""
    if not _is_text(name) or "\0" in name:
        return "holds what no file name can"
    if name.startswith("/") or "\\" in name or ":" in name.split("/", 1)[0]:
        return "is no relative path"
    if ".." in name.split("/"):
        return "leads upwards"
    return "" if _parts(name) else "names no file"


def _parts(name: str) -> tuple[str, ...]:
    """`./a//b` as (a, b)."""
    return PurePosixPath(name).parts


def _missing(reader: _Reader, dialogue: Dialogue, names: set[str]) -> str:
    """What a dialogue lacks and, where leaving out leading folders finds the file, the prefix that does it."""
    wanted = sorted(names)
    shorter = ((parts[:at], parts[at:]) for parts in map(_parts, wanted) for at in range(1, len(parts)))
    found = next(("/".join(before) for before, rest in shorter if _is_file(reader.root.joinpath(*rest))), None)
    hint = f"it is there with --prefix {found}" if found else "put it there, or --leave-out such dialogues"
    return f"dialogue {dialogue.id!r}: no file {', '.join(wanted)} below {reader.root}; {hint}"


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
    """JSON can write halves of a character, which no tokenizer and no file can hold."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _show(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

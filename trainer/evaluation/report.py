"""What an evaluation leaves behind: results.csv and results.jsonl, a row for every answer, and results.html to read.

Rule: the two tables hold every text in full; the page shows pictures small and the longest texts cut, and says so. It
is one file that needs no network and runs no script: texts are escaped by the template, and a content security policy
stands behind that. Same results, same bytes; each file is whole or not there.

    write_report(Path("out"), dialogues, title="llama-7b", facts={"build": "1a2b"}, scores=score(answers).datasets)
"""

from __future__ import annotations

import base64
import csv
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shards.errors import ImageError
from shards.files import replace_file
from shards.images.pixels import check_kind, check_size, load_pixels, open_picture, read_orientation, to_rgb, upright
from trainer.errors import TrainError
from trainer.evaluation.metrics import METRICS, DatasetScore

PAGE_DIALOGUES = 500  # a browser shows so many at once without effort
PAGE_PICTURES = 3000
PAGE_CHARACTERS = 20_000  # of one text
# Up to so many pictures on the page -> the longest side of each in pixels. Photos then fill less than about 20 MB.
THUMBNAILS = ((150, 512), (500, 320), (1500, 192))
_SMALLEST = 112
_JPEG_QUALITY = 80
_MAX_PIXELS = 200_000_000  # what a small file may claim to be before it is decoded
_COLUMNS = ("dataset", "dialogue", "round", "question", "images", "answer", "references")
# What HTML and terminals cannot show: C0 without tab, line feed and return, DEL, C1; and halves of a character.
_UNSHOWABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_HALF = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture that a question brought in: the name to show, and its file or the file's bytes."""

    name: str
    content: Path | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredRound:
    """A question, the model's answer and, where there is something to compare with, references and metric -> value."""

    question: str
    answer: str
    pictures: tuple[Picture, ...] = ()
    references: tuple[str, ...] = ()
    scores: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredDialogue:
    """A conversation as it was held. dataset: the part of the evaluation it belongs to, or ""."""

    id: str
    rounds: tuple[AnsweredRound, ...]
    dataset: str = ""


def write_report(
    folder: Path,
    dialogues: Sequence[AnsweredDialogue],
    *,
    title: str,
    facts: Mapping[str, str] | None = None,
    scores: Sequence[DatasetScore] = (),
) -> None:
    """Write the three files into `folder`, which is made where it is not there.

    facts: what the page says of model and build, as name -> text. scores: the page's table.
    Raises TrainError for a picture that cannot be shown; the tables are written by then, so no answer is lost.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = _rows(dialogues)
    replace_file(folder / "results.csv", _csv(rows))
    replace_file(
        folder / "results.jsonl", b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    )
    page = _page(dialogues, title=title, facts=facts or {}, scores=scores)
    replace_file(folder / "results.html", page.encode())


def thumbnail(data: bytes, side: int) -> tuple[bytes, int, int]:
    """A JPEG of at most side x side pixels, and its width and height. As the model gets it: upright, alpha dropped.

    Raises shards.images.pixels.ImageError for what the model could not be shown either.
    """
    with warnings.catch_warnings(action="ignore"):
        picture, _ = open_picture(data)
        check_size(picture, _MAX_PIXELS)
        check_kind(picture, data)
        load_pixels(picture, data)
        image = upright(to_rgb(picture), read_orientation(picture, data))
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return out.getvalue(), *image.size


def _rows(dialogues: Sequence[AnsweredDialogue]) -> list[dict[str, Any]]:
    """A row an answer: the columns, and after them every metric that any answer has, null where this one has not."""
    rounds = [
        (dialogue, number, round_) for dialogue in dialogues for number, round_ in enumerate(dialogue.rounds, start=1)
    ]
    metrics = list(dict.fromkeys(name for _, _, round_ in rounds for name in round_.scores or ()))
    return [
        {
            "dataset": _whole(dialogue.dataset),
            "dialogue": _whole(dialogue.id),
            "round": number,
            "question": _whole(round_.question),
            "images": [_whole(picture.name) for picture in round_.pictures],
            "answer": _whole(round_.answer),
            "references": [_whole(text) for text in round_.references],
            **{name: (round_.scores or {}).get(name) for name in metrics},
        }
        for dialogue, number, round_ in rounds
    ]


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Lists are written as JSON, what is missing as nothing."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]) if rows else list(_COLUMNS), lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: orjson.dumps(value).decode() if isinstance(value, list) else value for name, value in row.items()}
        )
    return out.getvalue().encode()


def _page(
    dialogues: Sequence[AnsweredDialogue], *, title: str, facts: Mapping[str, str], scores: Sequence[DatasetScore]
) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": _shown, "cut": lambda text: max(0, len(text) - PAGE_CHARACTERS)}
    environment.filters["number"] = lambda value: f"{value:.3f}"
    shown = _on_page(dialogues)
    return environment.get_template("report.html.jinja").render(
        title=title,
        facts=facts,
        scores=scores,
        metrics={name: METRICS[name] for row in scores for name in row.metrics},
        dialogues=shown,
        num_dialogues=len(dialogues),
        num_answers=sum(len(dialogue.rounds) for dialogue in dialogues),
        pictures=_pictures(shown),
    )


def _on_page(dialogues: Sequence[AnsweredDialogue]) -> Sequence[AnsweredDialogue]:
    """As many as fit from the start, and one at least."""
    pictures = accumulate(sum(len(round_.pictures) for round_ in dialogue.rounds) for dialogue in dialogues)
    fitting = sum(total <= PAGE_PICTURES for total in pictures)
    return dialogues[: min(max(fitting, 1), PAGE_DIALOGUES)]


def _pictures(dialogues: Sequence[AnsweredDialogue]) -> list[list[list[dict[str, Any]]]]:
    """For every dialogue and round: each picture's name, data URL, width and height; all problems are told at once."""
    places = [
        (dialogue, number, picture)
        for dialogue in dialogues
        for number, round_ in enumerate(dialogue.rounds, start=1)
        for picture in round_.pictures
    ]
    side = next((side for most, side in THUMBNAILS if len(places) <= most), _SMALLEST)
    made: dict[Path | bytes, dict[str, Any]] = {}
    problems: dict[Path | bytes, str] = {}
    for dialogue, number, picture in places:
        content = picture.content
        if content in made or content in problems:
            continue
        try:
            made[content] = _embedded(content, side)
        except (OSError, ImageError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            problems[content] = f"{dialogue.id}, round {number}: the picture {picture.name} cannot be shown: {reason}"
    if problems:
        raise TrainError(
            "\n".join(
                [
                    *problems.values(),
                    "results.csv and results.jsonl are written, results.html is not; mend the pictures",
                ]
            )
        )
    return [
        [[{"name": picture.name, **made[picture.content]} for picture in round_.pictures] for round_ in dialogue.rounds]
        for dialogue in dialogues
    ]


def _embedded(content: Path | bytes, side: int) -> dict[str, Any]:
    data, width, height = thumbnail(content.read_bytes() if isinstance(content, Path) else content, side)
    return {"url": f"data:image/jpeg;base64,{base64.b64encode(data).decode()}", "width": width, "height": height}


def _whole(text: str) -> str:
    """The text itself; halves of a character, which no file can hold, become U+FFFD."""
    return _HALF.sub("\ufffd", text)


def _shown(text: str) -> str:
    """As much of a text as the page shows, without what would break it."""
    return _UNSHOWABLE.sub("\ufffd", text[:PAGE_CHARACTERS])

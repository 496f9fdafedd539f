"""The report of an evaluation: results.csv and results.jsonl with a row per answer, and results.html to read.

Rule: the two tables contain every text in full. The page shows small images and truncates the longest texts, and says
so. It is one file that needs no network and runs no script: the template escapes texts, and a content security policy
forbids scripts. The same results give the same bytes; each file is complete or missing.

    write_report(Path("out"), dialogues, title="llama-7b", facts={"build": "1a2b"}, scores=score(answers).datasets)
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import orjson

from dst.common.html_pages import page_environment
from shards.errors import ImageError
from shards.files import replace_file
from shards.images.thumbnails import thumbnail
from trainer.errors import TrainError
from trainer.evaluation.metrics import METRICS, DatasetScore

PAGE_DIALOGUES = 500  # browsers show this many without delay
PAGE_IMAGES = 3000
PAGE_CHARACTERS = 20_000  # of one text
# Images on the page, at most -> longest side of each in pixels. Photos then take less than about 20 MB.
THUMBNAILS = ((150, 512), (500, 320), (1500, 192))
_SMALLEST = 112
_COLUMNS = ("dataset", "dialogue", "round", "question", "images", "answer", "references")
# What HTML and terminals cannot show: C0 except tab, line feed and return; DEL; C1; halves of surrogate pairs.
_UNSHOWABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportImage:
    """An image of a question: its name, and its path or the bytes of its file."""

    name: str
    content: Path | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredRound:
    """A question and the model's answer; if it was scored, the references, and metric -> value."""

    question: str
    answer: str
    images: tuple[ReportImage, ...] = ()
    references: tuple[str, ...] = ()
    scores: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredDialogue:
    """A conversation as it was held. dataset: the dataset of the sample, or ""."""

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
    """Write the three files into `folder`, which is created if needed.

    facts: name -> text, about model and build. scores: for the page's table. Raises TrainError for images that cannot
    be shown; the tables are written before, so no answer is lost.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = _rows(dialogues)
    replace_file(folder / "results.csv", _csv(rows))
    replace_file(
        folder / "results.jsonl", b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    )
    page = _page(dialogues, title=title, facts=facts or {}, scores=scores)
    replace_file(folder / "results.html", page.encode())


def _rows(dialogues: Sequence[AnsweredDialogue]) -> list[dict[str, Any]]:
    """A row per answer: the columns, then every metric that any answer has, null where this answer has none."""
    rounds = [
        (dialogue, number, round_) for dialogue in dialogues for number, round_ in enumerate(dialogue.rounds, start=1)
    ]
    metrics = list(dict.fromkeys(name for _, _, round_ in rounds for name in round_.scores or ()))
    return [
        {
            "dataset": _valid(dialogue.dataset),
            "dialogue": _valid(dialogue.id),
            "round": number,
            "question": _valid(round_.question),
            "images": [_valid(image.name) for image in round_.images],
            "answer": _valid(round_.answer),
            "references": [_valid(text) for text in round_.references],
            **{name: (round_.scores or {}).get(name) for name in metrics},
        }
        for dialogue, number, round_ in rounds
    ]


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """CSV; lists as JSON, missing values as empty fields."""
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
    environment = page_environment(Path(__file__).parent)
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
        images=_page_images(shown),
    )


def _on_page(dialogues: Sequence[AnsweredDialogue]) -> Sequence[AnsweredDialogue]:
    """The first dialogues, as many as the page can show, and at least one."""
    totals = accumulate(sum(len(round_.images) for round_ in dialogue.rounds) for dialogue in dialogues)
    fitting = sum(total <= PAGE_IMAGES for total in totals)
    return dialogues[: min(max(fitting, 1), PAGE_DIALOGUES)]


def _page_images(dialogues: Sequence[AnsweredDialogue]) -> list[list[list[dict[str, Any]]]]:
    """For every dialogue and round: each image's name, data URL, width, height. Raises TrainError with all problems."""
    uses = [
        (dialogue, number, image)
        for dialogue in dialogues
        for number, round_ in enumerate(dialogue.rounds, start=1)
        for image in round_.images
    ]
    side = next((side for most, side in THUMBNAILS if len(uses) <= most), _SMALLEST)
    embedded: dict[Path | bytes, dict[str, Any]] = {}
    problems: dict[Path | bytes, str] = {}
    for dialogue, number, image in uses:
        content = image.content
        if content in embedded or content in problems:
            continue
        try:
            embedded[content] = _embed(content, side)
        except (OSError, ImageError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            problems[content] = f"{dialogue.id}, round {number}: the image {image.name} cannot be shown: {reason}"
    if problems:
        raise TrainError(
            "\n".join(
                [
                    *problems.values(),
                    "results.csv and results.jsonl are written, results.html is not; replace these images",
                ]
            )
        )
    return [
        [[{"name": image.name, **embedded[image.content]} for image in round_.images] for round_ in dialogue.rounds]
        for dialogue in dialogues
    ]


def _embed(content: Path | bytes, side: int) -> dict[str, Any]:
    data, width, height = thumbnail(content.read_bytes() if isinstance(content, Path) else content, side)
    return {"url": f"data:image/jpeg;base64,{base64.b64encode(data).decode()}", "width": width, "height": height}


def _valid(text: str) -> str:
    """The text; halves of surrogate pairs, which cannot be encoded, become U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


def _shown(text: str) -> str:
    """The part of a text that the page shows, without characters that it cannot show."""
    return _UNSHOWABLE.sub("\ufffd", text[:PAGE_CHARACTERS])

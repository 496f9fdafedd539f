"""The report of an evaluation: results.csv and results.jsonl with a row per answer, and results.html to read.

Rule: the two tables contain every text in full. The page shows small images and truncates the longest texts, and says
so. It is one file that needs no network and runs no script: the template escapes texts, and a content security policy
forbids scripts. An image that cannot be shown has its reason in its place. The same results give the same bytes; each
file is complete or missing.

    write_report(Path("out"), dialogues, title="llama-7b", facts={"build": "1a2b"}, scores=score(answers).datasets)
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Template

from dst.common.html_pages import page_environment, page_policy
from shards.files import replace_file
from shards.images.page_images import PageImage, page_image
from shards.images.thumbnails import side_for
from trainer.evaluation.blind_rows import BlindRow, difference_text
from trainer.evaluation.metrics import METRICS, DatasetScore

PAGE_DIALOGUES = 500  # browsers show this many without delay
PAGE_IMAGES = 3000
PAGE_CHARACTERS = 20_000  # of one text
_COLUMNS = ("dataset", "dialogue", "branch", "record", "round", "question", "images", "answer", "references")
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
    """A conversation as it was held.

    Of a held-out record: id is the key of its sample, branch its number among the records that share the sample, from
    1, or None if none does.
    """

    id: str
    rounds: tuple[AnsweredRound, ...]
    dataset: str = ""
    record: str = ""
    branch: int | None = None


def write_report(
    folder: Path,
    dialogues: Sequence[AnsweredDialogue],
    *,
    title: str,
    facts: Mapping[str, str] | None = None,
    scores: Sequence[DatasetScore] = (),
    blind: Sequence[BlindRow] = (),
    blind_notes: Sequence[str] = (),
) -> None:
    """Write the three files into `folder`, which is created if needed.

    facts: name -> text, about model and build. scores, blind: for the page's tables. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = _rows(dialogues)
    replace_file(folder / "results.csv", _csv(rows))
    replace_file(
        folder / "results.jsonl", b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    )
    wrong_images = {"blind": blind, "blind_notes": blind_notes}
    page = _page(dialogues, title=title, facts=facts or {}, scores=scores, **wrong_images)
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
            "branch": dialogue.branch,
            "record": _valid(dialogue.record),
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
    dialogues: Sequence[AnsweredDialogue],
    *,
    title: str,
    facts: Mapping[str, str],
    scores: Sequence[DatasetScore],
    **tables: Any,
) -> str:
    shown = _on_page(dialogues)
    return _template().render(
        policy=page_policy(),
        page_characters=PAGE_CHARACTERS,
        title=title,
        facts=facts,
        scores=scores,
        metrics={name: METRICS[name] for row in scores for name in row.metrics},
        dialogues=shown,
        num_dialogues=len(dialogues),
        num_answers=sum(len(dialogue.rounds) for dialogue in dialogues),
        images=_page_images(shown),
        **tables,
    )


@cache
def _template() -> Template:
    environment = page_environment(Path(__file__).parent)
    environment.filters["number"] = lambda value: f"{value:.3f}"
    environment.filters["difference"] = difference_text
    return environment.get_template("report.html.jinja")


def _on_page(dialogues: Sequence[AnsweredDialogue]) -> Sequence[AnsweredDialogue]:
    """The first dialogues, as many as the page can show, and at least one."""
    totals = accumulate(sum(len(round_.images) for round_ in dialogue.rounds) for dialogue in dialogues)
    fitting = sum(total <= PAGE_IMAGES for total in totals)
    return dialogues[: min(max(fitting, 1), PAGE_DIALOGUES)]


def _page_images(dialogues: Sequence[AnsweredDialogue]) -> list[list[list[PageImage]]]:
    """The images of every dialogue and round; an image that is shown often is decoded once."""
    uses = [image for dialogue in dialogues for round_ in dialogue.rounds for image in round_.images]
    side = side_for(len(uses))
    shown: dict[Path | bytes, PageImage] = {}
    for image in uses:
        if (content := image.content) not in shown:
            shown[content] = page_image("", partial(_read, content), side)
    return [
        [[replace(shown[image.content], name=image.name) for image in round_.images] for round_ in dialogue.rounds]
        for dialogue in dialogues
    ]


def _read(content: Path | bytes) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content


def _valid(text: str) -> str:
    """The text; halves of surrogate pairs, which cannot be encoded, become U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)

"""Join question files with annotation files on question_id.

Rule: 17 and "17" are the same id. A question without an annotation and an annotation without a question are rejects. A
question file without any annotation is a test split, which is an error. All rows stay in memory until the join, as
columns: about 0.5 kB for a question with ten answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from preprocess.adapters.base import Request
from preprocess.adapters.datasets.vqa_records import (
    ANSWER_KEYS,
    QUESTION_KEYS,
    Answers,
    answers_of,
    conversation,
    image_of,
)
from preprocess.adapters.parsing.fields import as_id, build_or_reject, need, need_id, question
from preprocess.adapters.parsing.identities import Identities
from preprocess.adapters.parsing.json_stream import array_items, outline
from preprocess.adapters.parsing.keys import filter_fields, own_id, record_of, renamed
from preprocess.adapters.parsing.record_location import location_of
from preprocess.adapters.parsing.splits import split_of_file, split_of_image
from preprocess.conversation import Image, OfficialSplit, Records, RecordSource, Reject, Scalar
from preprocess.errors import DataError, RejectError

if TYPE_CHECKING:
    import polars

_SUBTYPE = re.compile(r"(?:train|val|test)\d{4}")
_ROWS_AT_ONCE = 20_000
_QUESTION = {
    "key": str,
    "file_index": int,
    "number": int,
    "question": str,
    "name": str,
    "fields": bytes,
    "bad": str,
    "why": str,
}
_ANNOTATION = {
    "key": str,
    "partner": int,
    "trained": str,
    "answers": bytes,
    "outvoted": bool,
    "unanswered": str,
    "reason": str,
    "more_fields": bytes,
}


class Columns:
    """Rows in columns; only the latest few are Python objects."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema
        self.rows: list[tuple[Any, ...]] = []
        self.parts: list[polars.DataFrame] = []

    def add(self, row: tuple[Any, ...]) -> None:
        self.rows.append(row)
        if len(self.rows) == _ROWS_AT_ONCE:
            self._pack()

    def table(self) -> polars.DataFrame:
        """All rows; afterwards this object is empty."""
        import polars

        self._pack()
        parts, self.parts = self.parts, []
        return polars.concat(parts)

    def _pack(self) -> None:
        import polars

        self.parts.append(polars.DataFrame(self.rows, orient="row", schema=self.schema))
        self.rows.clear()


@dataclass(kw_only=True)
class Pairs:
    """The needed columns of question and annotation files, row by row.

    A bad row keeps its id and its reason, so that its partner does not count as unmatched.
    """

    request: Request
    question_files: list[Path] = field(default_factory=list)
    splits: list[OfficialSplit] = field(default_factory=list)
    annotation_files: list[Path] = field(default_factory=list)
    questions: Columns = field(default_factory=lambda: Columns(_QUESTION))
    annotations: Columns = field(default_factory=lambda: Columns(_ANNOTATION))

    def read_questions(self, path: Path) -> Iterator[Reject]:
        file, file_index = self.request.source_file(path), len(self.question_files)
        self.question_files.append(path)
        subtype = _subtype(path)
        self.splits.append(split_of_image(subtype) or split_of_file(file))
        for number, record in enumerate(array_items(path, "questions")):
            key = own_id(self.request, record, "question_id")
            if key is None:
                yield _without_id(self.request, file, number, record)
                continue
            made = build_or_reject(RecordSource(file=file, record=key), _asked, self.request, record, subtype)
            row = ("", "", b"", made.reason, made.detail) if isinstance(made, Reject) else (*made, None, None)
            self.questions.add((key, file_index, number, *row))

    def read_annotations(self, path: Path) -> Iterator[Reject]:
        file, file_index = self.request.source_file(path), len(self.annotation_files)
        self.annotation_files.append(path)
        for number, record in enumerate(array_items(path, "annotations")):
            key = own_id(self.request, record, "question_id")
            if key is None:
                yield _without_id(self.request, file, number, record)
                continue
            made = build_or_reject(RecordSource(file=file, record=key), _answered, self.request, record)
            if isinstance(made, Reject):
                self.annotations.add((key, file_index, "", b"", False, made.reason, made.detail, b""))
            else:
                answers, fields = made
                # As JSON: a list column takes 16 more bytes for each answer.
                given = orjson.dumps(answers.given)
                self.annotations.add((key, file_index, answers.trained, given, answers.outvoted, None, None, fields))

    def join(self, identities: Identities) -> Records:
        questions, annotations = self.questions.table(), self.annotations.table()
        is_first = annotations["key"].is_first_distinct()
        keys = annotations.select("key").with_row_index("row").filter(is_first)
        rows = questions.select("key", "file_index").join(keys, on="key", how="left", maintain_order="left")
        self._refuse_unanswered(rows)
        for row in _pairs(questions, annotations, rows["row"]):
            key, file_index, number, words, name, fields, bad, why, *annotation = row
            partner, trained, given, outvoted, unanswered, reason, more_fields = annotation
            asked = location_of(identities, self.question_files[file_index], key, number)
            if bad is not None:
                yield Reject(reason=bad, source=asked.source, detail=why)
            elif partner is None:
                yield Reject(reason="no_answer", source=asked.source, detail="no annotation has this question_id")
            elif unanswered is not None:
                yield Reject(reason=unanswered, source=asked.source, detail=f"its annotation: {reason}")
            else:
                answers = Answers(trained, tuple(orjson.loads(given)), outvoted)
                split = self.splits[file_index]
                both = {**_unpacked(more_fields), **_unpacked(fields)}
                yield build_or_reject(asked.source, conversation, asked, words, Image(name=name), answers, split, both)
        files = [self.request.source_file(path) for path in self.annotation_files]
        ids = annotations.select("key", "partner")
        leftover = ids.filter(is_first).join(questions.select("key"), on="key", how="anti", maintain_order="left")
        for key, file_index in leftover.iter_rows():
            source = RecordSource(file=files[file_index], record=key)
            yield Reject(reason="no_match", source=source, detail="no question has this question_id")
        for key, file_index in ids.filter(~is_first).iter_rows():
            source = RecordSource(file=files[file_index], record=key)
            yield Reject(reason="duplicate_id", source=source, detail="an earlier annotation has this question_id")

    def _refuse_unanswered(self, rows: polars.DataFrame) -> None:
        """rows: for each question, the index of its file and the row of its annotation, or null."""
        for file_index, path in enumerate(self.question_files):
            of_file = rows.filter(rows["file_index"] == file_index)
            if of_file.height and of_file["row"].null_count() == of_file.height:
                raise DataError(
                    f"{path}: none of its {of_file.height} questions has an annotation, as in a test split: "
                    "name only the files to use in `annotations`, each question file with its annotations"
                )
        if not self.question_files:
            raise DataError(f"{self.annotation_files[0]}: has no question file; name both in `annotations`")


def _pairs(
    questions: polars.DataFrame, annotations: polars.DataFrame, rows: polars.Series
) -> Iterator[tuple[Any, ...]]:
    """Each question's columns with those of its annotation (at `rows`) except the key; null without an annotation."""
    others = annotations.drop("key")
    for start in range(0, questions.height, _ROWS_AT_ONCE):
        partners = others[rows.slice(start, _ROWS_AT_ONCE)]
        yield from questions.slice(start, _ROWS_AT_ONCE).hstack(partners).iter_rows()


def _asked(request: Request, published: Any, subtype: str) -> tuple[str, str, bytes]:
    """The question, the image's name and the fields."""
    record = record_of(published, request, QUESTION_KEYS)
    name = image_of(need(record, "image_id"), subtype)
    return question(need(record, "question")), name, _packed(filter_fields(request, published))


def _answered(request: Request, published: Any) -> tuple[Answers, bytes]:
    """The answers and the fields."""
    answers = answers_of(record_of(published, request, ANSWER_KEYS), request)
    return answers, _packed(filter_fields(request, published))


def _packed(fields: dict[str, Scalar]) -> bytes:
    """As JSON, which also has the numbers that orjson refuses: those of more than 64 bits."""
    return json.dumps(fields).encode() if fields else b""


def _unpacked(fields: bytes) -> dict[str, Scalar]:
    return json.loads(fields) if fields else {}


def _subtype(path: Path) -> str:
    """`data_subtype` as in the file, or else as in its name: train2014."""
    for key, _, value in outline(path):
        if key == "data_subtype" and as_id(value) is not None:
            return str(value)
    found = _SUBTYPE.search(path.stem)
    return found[0] if found else ""


def _without_id(request: Request, file: str, number: int, record: Any) -> Reject:
    source = RecordSource(file=file, record=str(number))
    try:
        need_id(renamed(record, request), "question_id")
    except RejectError as bad:
        return Reject(reason=bad.reason, source=source, detail=bad.detail)
    raise AssertionError("a record with a usable question_id has a key")

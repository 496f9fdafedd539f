"""Join question files with annotation files on question_id.

Rule: 17 and "17" are the same id. A question without an annotation and an annotation without a question are rejects;
a question file of which no question has an annotation is a test split, and refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocess.adapter import Request
from preprocess.adapters.fields import BadRecordError, as_id, fence, need, need_id, object_of, own_id, question
from preprocess.adapters.identities import Identities
from preprocess.adapters.splits import split_in_name
from preprocess.adapters.vqa_records import answer_of, conversation, image_of
from preprocess.conversation import Records, Reject, Source, Split
from preprocess.errors import DataError
from preprocess.json_stream import array_items, outline

if TYPE_CHECKING:
    import polars

_SUBTYPE = re.compile(r"(?:train|val|test)\d{4}")


@dataclass(kw_only=True)
class Pairs:
    """The needed columns of question and annotation files, row by row; a row that is bad keeps its id and its reason,
    so that its partner is not called unmatched."""

    request: Request
    question_files: list[Path] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    annotation_files: list[Path] = field(default_factory=list)
    questions: list[tuple[Any, ...]] = field(default_factory=list)
    annotations: list[tuple[Any, ...]] = field(default_factory=list)

    def read_questions(self, path: Path) -> Iterator[Reject]:
        file, place = self.request.source_file(path), len(self.question_files)
        self.question_files.append(path)
        subtype = _subtype(path)
        self.splits.append(split_in_name(subtype, path.stem))
        for number, record in enumerate(array_items(path, "questions")):
            key = own_id(record, "question_id")
            if key is None:
                yield _without_id(file, number, record)
                continue
            made = fence(Source(file=file, record=key), _asked, record, subtype)
            row = ("", "", made.reason, made.detail) if isinstance(made, Reject) else (*made, None, None)
            self.questions.append((key, place, number, *row))

    def read_annotations(self, path: Path) -> Iterator[Reject]:
        file, place = self.request.source_file(path), len(self.annotation_files)
        self.annotation_files.append(path)
        for number, record in enumerate(array_items(path, "annotations")):
            key = own_id(record, "question_id")
            if key is None:
                yield _without_id(file, number, record)
                continue
            made = fence(Source(file=file, record=key), answer_of, record)
            row = ("", (), made.reason, made.detail) if isinstance(made, Reject) else (*made, None, None)
            self.annotations.append((key, place, *row))

    def join(self, identities: Identities) -> Records:
        questions, annotations = self._tables()
        first = annotations.filter(annotations["key"].is_first_distinct())
        joined = questions.join(first, on="key", how="left", maintain_order="left")
        self._refuse_unanswered(joined)
        labels = [identities.label(path) for path in self.question_files]
        files = [self.request.source_file(path) for path in self.question_files]
        for key, place, number, words, name, bad, why, partner, best, others, unanswered, reason in joined.iter_rows():
            source = Source(file=files[place], record=key)
            if bad is not None:
                yield Reject(reason=bad, source=source, detail=why)
            elif partner is None:
                yield Reject(reason="no_answer", source=source, detail="no annotation has this question_id")
            elif unanswered is not None:
                yield Reject(reason=unanswered, source=source, detail=f"its annotation: {reason}")
            else:
                yield fence(
                    source, conversation, self.request, identities, labels[place], key, number, source,
                    words, name, best, others, self.splits[place],
                )  # fmt: skip
        files = [self.request.source_file(path) for path in self.annotation_files]
        leftover = first.join(questions, on="key", how="anti", maintain_order="left")
        for key, place in leftover.select("key", "partner").iter_rows():
            source = Source(file=files[place], record=key)
            yield Reject(reason="no_match", source=source, detail="no question has this question_id")
        repeated = annotations.filter(~annotations["key"].is_first_distinct())
        for key, place in repeated.select("key", "partner").iter_rows():
            source = Source(file=files[place], record=key)
            yield Reject(reason="duplicate_id", source=source, detail="an earlier annotation has this question_id")

    def _tables(self) -> tuple[polars.DataFrame, polars.DataFrame]:
        import polars

        text, number, words = polars.String, polars.Int64, polars.List(polars.String)
        questions = polars.DataFrame(
            self.questions,
            orient="row",
            schema={"key": text, "place": number, "number": number, "question": text, "name": text,
                    "bad": text, "why": text},
        )  # fmt: skip
        annotations = polars.DataFrame(
            self.annotations,
            orient="row",
            schema={"key": text, "partner": number, "best": text, "answers": words, "unanswered": text, "reason": text},
        )
        self.questions, self.annotations = [], []
        return questions, annotations

    def _refuse_unanswered(self, joined: polars.DataFrame) -> None:
        for place, path in enumerate(self.question_files):
            of_file = joined.filter(joined["place"] == place)
            if of_file.height and of_file["partner"].null_count() == of_file.height:
                raise DataError(
                    f"{path}: none of its {of_file.height} questions has an annotation; a test split has no answers to "
                    "learn: name only the files to use in `annotations`, each question file with its annotations"
                )
        if not self.question_files:
            raise DataError(f"{self.annotation_files[0]}: there is no question file for it; name both in `annotations`")


def _asked(record: dict[str, Any], subtype: str) -> tuple[str, str]:
    """The question and the image's name."""
    name = image_of(need(record, "image_id"), subtype)
    return question(need(record, "question")), name


def _subtype(path: Path) -> str:
    """`data_subtype` as the file states it, or else as its name does: train2014."""
    for key, _, value in outline(path):
        if key == "data_subtype" and as_id(value) is not None:
            return str(value)
    found = _SUBTYPE.search(path.stem)
    return found[0] if found else ""


def _without_id(file: str, number: int, record: Any) -> Reject:
    source = Source(file=file, record=str(number))
    try:
        need_id(object_of(record), "question_id")
    except BadRecordError as bad:
        return Reject(reason=bad.reason, source=source, detail=bad.detail)
    raise AssertionError("a record with a usable question_id has a key")

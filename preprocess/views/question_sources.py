"""The questions of a build, a folder or a file, for `dsvl-prep overlap`.

A build has no questions, only tokens: a question is what is not trained between two answers, without the words that the
template puts there. A system prompt of the data counts as a part of its first question.

Rule: what is not read is counted, or listed with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from dst import IGNORE, Message, Template, TemplateError, TextTokenizer, load_tokenizer
from preprocess.adapters.base import Request
from preprocess.adapters.lookup import find_adapter, read_records
from preprocess.compiler.record_texts import questions_of
from preprocess.conversation import Conversation
from preprocess.dedupe.questions import find_records, read_questions
from preprocess.dedupe.texts import words_of
from preprocess.errors import DataError
from shards import Sample
from shards.build import Build, open_build
from shards.format.manifest_file import NAME as MANIFEST
from shards.format.records import each_alone

RECORD_FILES = (".jsonl", ".json")
QUESTION_FILES = (*RECORD_FILES, ".txt")
_USER, _ANSWER = "qqquser", "qqqanswer"
"""Words that no template has"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """texts, names: [N], each question and where it is. without: records without one. unread: files, with reasons."""

    texts: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    without: int = 0
    unread: tuple[str, ...] = ()


def find_questions(path: Path, key: str) -> Questions:
    """The questions of a build, of a file, or of the record files directly in a folder; none for an archive.

    key: of the question in a record. Raises DataError for a file that cannot be read, ShardError for a damaged build.
    """
    if path.is_file():
        return _of_file(path, key) if path.suffix in QUESTION_FILES else Questions()
    if (path / MANIFEST).is_file():
        return _of_build(open_build(path))
    parts, unread = [], []
    for file in sorted(one for one in path.iterdir() if one.suffix in RECORD_FILES and one.is_file()):
        try:
            parts.append(_of_file(file, key))
        except DataError as error:
            unread.append(str(error))
    return Questions(
        texts=[text for part in parts for text in part.texts],
        names=[name for part in parts for name in part.names],
        without=sum(part.without for part in parts),
        unread=tuple(unread),
    )


def _of_file(path: Path, key: str) -> Questions:
    """A text under `key` in every record; where no record has one, the user turns of conversations in any form."""
    records = [] if path.suffix == ".txt" else find_records(path)
    if path.suffix == ".txt" or any(isinstance(record, dict) and key in record for record in records):
        texts = read_questions(path, key)
        return Questions(texts=texts, names=[f"{path.name} {number}" for number in range(len(texts))])
    options = {name: option.default for name, option in find_adapter("chat").options.items()}
    request = Request(root=path.parent, annotations=(path,), images=(), options=options)
    questions = Questions()
    without = 0
    for item in read_records("chat", request):
        if isinstance(item, Conversation):
            found = questions_of(item)
            questions.texts.extend(found)
            questions.names.extend([f"{path.name} {item.sources[0].record}"] * len(found))
        else:
            without += 1
    if not questions.texts:
        raise DataError(
            f"{path}: no record has a text under {key!r}, and none is a conversation; set --question-key to the key of "
            "its questions"
        )
    return Questions(texts=questions.texts, names=questions.names, without=without)


def _of_build(build: Build) -> Questions:
    tokenizer = load_tokenizer(build.tokenizer_folder())
    questions = Questions()
    templates: dict[str, _TemplateWords] = {}
    for name, _, shard in build.shards():
        if name not in templates:
            templates[name] = _template_words(build.manifest.datasets[name].template, tokenizer)
        for number in range(len(shard)):
            for record in each_alone(shard[number], tokenizer.image_id):
                source = record.metadata["sources"][0]
                found = list(_untrained(record, tokenizer, templates[name]))
                questions.texts.extend(found)
                questions.names.extend([f"{name}: {source['file']} {source['record']}"] * len(found))
    return questions


def _untrained(sample: Sample, tokenizer: TextTokenizer, template: _TemplateWords) -> Iterator[str]:
    """The words of each question; images are not words."""
    asked = (sample.labels == IGNORE).tolist()
    ids = sample.ids.tolist()
    for is_asked, run in groupby(range(len(ids)), key=asked.__getitem__):
        if is_asked:
            kept = [ids[place] for place in run if ids[place] != tokenizer.image_id]
            words = template.without(words_of(tokenizer.decode(kept)))
            if words:
                yield " ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class _TemplateWords:
    """What a template writes before a question and after it, the longest first, and for each image."""

    before: Sequence[list[str]]
    after: Sequence[list[str]]
    images: frozenset[str]

    def without(self, words: list[str]) -> list[str]:
        start = next((end for words_before in self.before if (end := self._end(words, words_before))), 0)
        stop = next((len(words) - len(one) for one in self.after if one and words[-len(one) :] == one), len(words))
        return words[start:stop]

    def _end(self, words: list[str], before: list[str]) -> int:
        """Where the words end that the template writes before a question; 0 if they are not all there."""
        place = 0
        for number, word in enumerate(words):
            if place == len(before):
                return number
            if word == before[place]:
                place += 1
            elif word not in self.images and not word.isdecimal():
                return 0
        return len(words) if place == len(before) else 0


def _template_words(source: str, tokenizer: TextTokenizer) -> _TemplateWords:
    """Two rounds are rendered, with and without an image: what is between their texts is the template's."""

    def pieces(*first: dict[str, str]) -> list[list[str]]:
        question = [*first, {"type": "text", "text": _USER}]
        messages: list[Message] = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _USER},
            {"role": "assistant", "content": _ANSWER},
        ]
        text = Template("", source).render(messages, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token).text
        return [words_of(piece) for piece in text.replace(_ANSWER, _USER).split(_USER)]

    try:
        plain, with_image = pieces(), pieces({"type": "image"})
    except TemplateError:  # of a template that wants other roles
        return _TemplateWords(before=(), after=(), images=frozenset())
    end = words_of(tokenizer.eos_token)  # of an answer; trained or not
    before = [plain[0], plain[2], *([plain[2][len(end) :]] if end and plain[2][: len(end)] == end else [])]
    return _TemplateWords(
        before=sorted(before, key=len, reverse=True),
        after=sorted((plain[1], plain[3]), key=len, reverse=True),
        images=frozenset(with_image[0]) - {*plain[0]},
    )

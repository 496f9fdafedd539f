"""Keys of records: what an adapter reads, what carries meaning and must not be dropped, and what does not matter.

Rule: a key of MEANINGS that has a value is read, left out because the blend says so, or makes the record a reject. Any
other key that an adapter does not read is ignored, and the build's report lists it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.fields import as_id, object_of, printable, show
from preprocess.adapters.parsing.unreadable import UnreadableRecord
from preprocess.containers.image_columns import IMAGE_KEYS, NUMBERED_KEYS, numbered
from preprocess.conversation import SCALARS, FieldValue, Scalar
from preprocess.errors import RejectError

_IMAGE = "an image"
_GROUPS: dict[str, str] = {
    _IMAGE: " ".join(IMAGE_KEYS) + " jpg jpeg png webp pixel_values image_bytes image_base64 base64 frame frames "
    "query_images rejected_images",
    "a video": "video videos video_path video_paths video_file video_url clip clips mp4",
    "a sound": "audio audios audio_path audio_paths audio_file audio_url speech sound sounds wav mp3 flac",
    "a document": "pdf pdfs document documents attachments",
    "objects that the text refers to": "objects",
    "a system prompt": "system system_prompt system_message system_instruction system_text",
    "tools": "tools functions available_tools tool_calls tool_responses function_call",
    "reasoning": "reasoning reasoning_content thinking",
    "what is trained": "loss loss_mask loss_masks loss_scale loss_weight weight weights train trained training "
    "train_on_turn training_detail mask masks completion_mask assistant_masks sample_weight",
    "tokens": "input_ids labels attention_mask token_ids",
    "a split": "split data_split partition fold is_train is_val is_valid is_test",
    "one of several answers": "chosen rejected chosen_response rejected_response rejected_responses chosen_messages "
    "rejected_messages preferred dispreferred",
    "a judgement of the answer": "label refusal",
    "a part of the question": "context input passage hint choices options history instruction query question questions "
    "prompt suffix prefix a b c d e option_a option_b option_c option_d option_e choice_a choice_b choice_c choice_d "
    "choice_e",
    "an answer": "answer answers response output completion caption captions",
    "turns": "messages conversations conversation dialogue dialog turns texts",
}
MEANINGS: dict[str, str] = {name: meaning for meaning, names in _GROUPS.items() for name in names.split()}
"""Key -> what it carries. Upper case, hyphens and camelCase do not matter: `videoPath` is `video_path`."""

_ANSWER_CHOICE = "one of several answers"
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_MAX_NAMES_CACHED = 64
_MAX_NAME = 60


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read: `understood`, those that the blend names, and those with a meaning.

    The others are noted as fields that a filter could name.
    """

    request: Request
    understood: frozenset[str]

    def __contains__(self, name: object) -> bool:
        if type(name) is not str:
            return False
        request = self.request
        known = name in self.understood or name in request.keys or name in request.filter_fields
        if known or meaning_of(name) is not None:
            return True
        request.tally.possible_field(name)
        return False


def record_of(value: Any, request: Request, understood: frozenset[str], what: str = "the record") -> dict[str, Any]:
    """The object under the names that the adapter reads (`understood`), after the blend's `fields` and `keys`.

    Raises RejectError if it is not an object, or has a value under a key that carries meaning and is not read.
    """
    record = renamed(value, request, what)
    check_keys(record, request, understood)
    return record


def renamed(value: Any, request: Request, what: str = "the record") -> dict[str, Any]:
    """The object, with the blend's `fields` and `keys` applied. Raises RejectError."""
    record = object_of(value, what)
    if not request.keys:
        return record
    request.tally.keys(record, request.keys)
    return _renamed(record, request.keys)


def check_keys(record: dict[str, Any], request: Request, understood: frozenset[str]) -> None:
    """Count the ignored keys. Raises RejectError for a key that carries meaning and is not in `understood`."""
    sort_out = _cached if len(record) <= _MAX_NAMES_CACHED else _sorted_out
    unread, ignored = sort_out(tuple(record), understood, request.filter_fields)
    for name in unread:
        if has_value(record[name]):
            raise _not_read(name, understood)
    for name in ignored:
        request.tally.ignored_key(name)


def has_value(value: Any) -> bool:
    """Whether there is something under a key: not null, blank text, or an empty array or object."""
    if type(value) is str:
        return not value.isspace() and value != ""
    return value is not None and (type(value) not in (list, dict, bytes) or len(value) > 0)


def given(record: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    """Those of the names that have a value in the record."""
    present = (_cached_present if len(record) <= _MAX_NAMES_CACHED else _present)(tuple(record), names)
    return [name for name in present if has_value(record[name])]


def one_of(record: Mapping[str, Any], names: tuple[str, ...], what: str) -> str | None:
    """The one name that has a value; None if none has. Raises RejectError if several have."""
    found = given(record, names)
    if len(found) > 1:
        raise RejectError(
            "bad_value",
            f"there are both {found[0]} and {found[1]}; expected one {what}. "
            f"To leave one out, set keys: {{{found[1]}: ignore}}",
        )
    return found[0] if found else None


def own_id(request: Request, record: Any, key: str) -> str | None:
    """The record's id as text, under the blend's name for `key`; None if it has no usable one."""
    if type(record) is not dict:
        return as_id(record.id) if isinstance(record, UnreadableRecord) else None
    if key not in record:
        for theirs, ours in request.keys.items():
            if ours == key and theirs in record:
                return as_id(record[theirs])
    return as_id(record.get(key))


def filter_fields(request: Request, *parts: Mapping[str, Any]) -> dict[str, Scalar]:
    """What the dataset's filter reads of a record, by the file's own names, where it is text, a number or a boolean.

    parts: the objects that the record consists of, such as an annotation and its image; the first with a value counts.
    """
    if not request.filter_fields:
        return {}
    found: dict[str, Scalar] = {}
    for part in parts:
        request.tally.fields(part, request.filter_fields)
        for name in request.filter_fields:
            if name not in found and type(part.get(name)) in SCALARS:
                found[name] = part[name]
    return found


def fields_of_all(request: Request, records: Sequence[Mapping[str, Scalar]]) -> dict[str, FieldValue]:
    """The fields of a conversation that several records became: each has a value of every record, None without one."""
    if len(records) == 1:
        return dict(records[0])
    return {name: tuple(record.get(name) for record in records) for name in request.filter_fields}


def meaning_of(name: str) -> str | None:
    """What a key of this name carries; None if it does not matter."""
    plain = plain_name(name)
    return MEANINGS.get(plain) or (_IMAGE if numbered(plain) else None)


def plain_name(name: str) -> str:
    """A name as MEANINGS spells it: `videoPath`, `Video-Path` and `video path` are `video_path`."""
    return _CAMEL.sub("_", name).lower().replace("-", "_").replace(" ", "_")


def _renamed(record: dict[str, Any], keys: Mapping[str, str | None]) -> dict[str, Any]:
    made = {name: value for name, value in record.items() if name not in keys}
    sources: dict[str, str] = {}
    for theirs, ours in keys.items():
        if ours is None or theirs not in record:
            continue
        if has_value(made.get(ours)):
            if has_value(record[theirs]):
                first = sources.get(ours, ours)
                raise RejectError(
                    "bad_value",
                    f"there are both {show(first)} and {show(theirs)}, which the blend reads as {ours}; expected one. "
                    f"To leave one out, set keys: {{{show(first)}: ignore}}",
                )
            continue
        made[ours], sources[ours] = record[theirs], theirs
    return made


def _sorted_out(
    names: tuple[str, ...], understood: frozenset[str], filtered: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of the names that are not read: those that carry meaning, and those that do not matter, fit for a report."""
    unread: list[str] = []
    ignored: list[str] = []
    reads_numbered = understood.issuperset(NUMBERED_KEYS)
    for name in names:
        if name not in understood and name not in filtered and not (reads_numbered and numbered(name)):
            if meaning_of(name) is None:
                ignored.append(printable(name[:_MAX_NAME]))
            else:
                unread.append(name)
    return tuple(unread), tuple(ignored)


def _present(keys: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name in keys)


# Records of a file share a few sets of keys.
_cached_present = lru_cache(maxsize=1024)(_present)
_cached = lru_cache(maxsize=512)(_sorted_out)


def _not_read(name: str, understood: frozenset[str]) -> RejectError:
    meaning = meaning_of(name)
    if meaning == _ANSWER_CHOICE:
        return RejectError(
            "preference_pair",
            f"key {show(name)} holds {meaning}, and a sample trains on one; to train on the chosen one, map its key in "
            "`fields`, and ignore the other in `keys`",
        )
    same = [ours for ours in MEANINGS if ours in understood and MEANINGS[ours] == meaning]  # the usual name first
    mapped = f", or fields: {{{show(name)}: {same[0]}}} to read it as {same[0]}" if same else ""
    return RejectError(
        "unknown_key",
        f"key {show(name)} holds {meaning}, which is not read; set keys: {{{show(name)}: ignore}} to leave it out"
        f"{mapped}",
    )

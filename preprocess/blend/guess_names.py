"""Which of the adapter's names the names in one's own records may stand for: a proposal for `fields` and `roles`.

Rule: a name is proposed if it is a known word, or if its values can be one thing only: the only list of objects is the
turns, the only paths of image files are the images. Who speaks is never concluded from the order of the turns. The
proposal goes into a blend file for a person to check; a build guesses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from preprocess.adapters.datasets.chat.forms import CAPTION_KEYS
from preprocess.adapters.parsing.keys import has_value, plain_name
from preprocess.adapters.parsing.messages import ANSWER_KEYS, CONTENT_KEYS, QUESTION_KEYS, ROLE_KEYS
from preprocess.adapters.parsing.record_images import is_image_path
from preprocess.adapters.parsing.roles import ROLES
from preprocess.containers.image_columns import IMAGE_KEYS, NUMBERED_KEYS, numbered
from preprocess.conversation import Role

TURN_KEYS = ("messages", "conversations", "conversation", "dialogue", "texts")
"""Under these names the adapter finds turns by itself."""

_TURNS = "conversation conversations dialog dialogs dialogue dialogues chat chats turns utterances log messages talk qa"
_TURNS += " qas qa_pairs history thread rounds 对话 dialogo gespraech gespräch"
_ROLE = "role speaker who author sender from name participant party actor 角色"
_CONTENT = "content text value utterance message msg says said body sentence line words 内容 texto inhalt"
_QUESTION = "question query prompt instruction user human input q ask asked problem questions 问题 提问 frage pregunta"
_ANSWER = "answer response output completion assistant gpt model bot reply a answered solution target 回答 答案 antwort"
_ANSWER += " respuesta réponse reponse"
_CAPTION = "caption text txt description alt_text alt captions 描述 beschreibung descripcion descripción"
_USERS = "customer client patient student asker questioner visitor person caller usr 用户 usuario nutzer benutzer"
_ASSISTANTS = "agent doctor expert teacher tutor helper support advisor operator asst llm vlm 助手 asistente assistent"
_MAX_ROLE = 40
_MAX_ROLES = 12
_DEPTH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """A proposal. fields, roles: as in the blend.

    unknown_roles: names that only a person can tell, in the order in which they first speak. questions: what else is
    not clear, one line each.
    """

    fields: dict[str, str] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)
    unknown_roles: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()


def guess_names(records: Sequence[Any]) -> Names | None:
    """What the names in these records may stand for; None if nothing in them looks like a conversation."""
    objects = [record for record in records if type(record) is dict]
    if not objects:
        return None
    questions: list[str] = []
    turns_key = _turns_key(objects)
    fields: dict[str, str] = {}
    roles: dict[str, Role] = {}
    unknown: list[str] = []
    if turns_key is not None:
        if turns_key not in TURN_KEYS:
            fields[turns_key] = "messages"
        turns = _turns(objects, turns_key)
        inside = _turn_names(turns)
        if inside is None:
            return None
        fields |= inside
        roles, unknown = _roles(turns, inside)
        _images(turns, fields, questions, True)
    else:
        texts = _question_and_answer(objects)
        if texts is None:
            return None
        fields |= texts
    _images(objects, fields, questions, False)
    if turns_key is None and not fields:
        return None
    return Names(fields=fields, roles=roles, unknown_roles=tuple(unknown), questions=tuple(questions))


def guess_images(records: Sequence[Any]) -> Names:
    """Which keys may hold the images, for records whose texts the adapter reads without any image."""
    objects = [record for record in records if type(record) is dict]
    fields: dict[str, str] = {}
    questions: list[str] = []
    turns_key = _turns_key(objects)
    if turns_key is not None:
        _images(_turns(objects, turns_key), fields, questions, True)
    _images(objects, fields, questions, False)
    return Names(fields=fields, questions=tuple(questions))


def nested_turns(records: Sequence[Any]) -> str | None:
    """Where the turns of the first record are, if they are below another key: `data.messages`."""
    first = next((record for record in records if type(record) is dict), None)
    return None if first is None else next(_turns_below(first, (), _DEPTH), None)


def _turns_below(value: dict[str, Any], above: tuple[str, ...], depth: int) -> Iterator[str]:
    for name, inner in value.items():
        if type(inner) is dict and depth:
            yield from _turns_below(inner, (*above, name), depth - 1)
        elif above and type(inner) is list and _turn_names([turn for turn in inner if type(turn) is dict]) is not None:
            yield ".".join((*above, name))


def _turns_key(records: list[dict[str, Any]]) -> str | None:
    """The key of the turns: one of the adapter's, a list of objects that a known word names, or the only list."""
    lists = [
        name
        for name in _keys(records)
        if any(any(type(item) is dict for item in _list(record.get(name))) for record in records)
    ]
    lists = [name for name in lists if plain_name(name) not in IMAGE_KEYS]
    own = [name for name in lists if name in TURN_KEYS]
    if own:
        return own[0]
    return _only(lists, _TURNS) or (lists[0] if len(lists) == 1 else None)


def _turns(records: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [turn for record in records for turn in _list(record.get(key)) if type(turn) is dict]


def _turn_names(turns: list[dict[str, Any]]) -> dict[str, str] | None:
    """The names in a turn for role and content, or for a question and its answer; None if neither is clear."""
    texts = [name for name in _keys(turns) if any(type(turn.get(name)) is str for turn in turns)]
    role = _named(texts, ROLE_KEYS, _ROLE) or _role_by_values(turns, texts)
    if role is not None:
        contents = [
            name for name in _keys(turns) if name != role and any(_is_content(turn.get(name)) for turn in turns)
        ]
        content = _named(contents, CONTENT_KEYS, _CONTENT) or (contents[0] if len(contents) == 1 else None)
        return None if content is None else _mapped({role: (ROLE_KEYS, "role"), content: (CONTENT_KEYS, "content")})
    question, answer = _named(texts, QUESTION_KEYS, _QUESTION), _named(texts, ANSWER_KEYS, _ANSWER)
    if question is None or answer is None:
        return None
    return _mapped({question: (QUESTION_KEYS, "question"), answer: (ANSWER_KEYS, "answer")})


def _role_by_values(turns: list[dict[str, Any]], texts: list[str]) -> str | None:
    """The only key whose values are known names of roles."""
    found = [name for name in texts if all(_role(turn.get(name)) is not None for turn in turns)]
    return found[0] if len(found) == 1 else None


def _roles(turns: list[dict[str, Any]], fields: dict[str, str]) -> tuple[dict[str, Role], list[str]]:
    """Names of roles that the adapter does not know: those that a word tells, and the others in order."""
    key = next((name for name, ours in fields.items() if ours == "role"), None)
    key = key or next((name for name in ROLE_KEYS if any(name in turn for turn in turns)), None)
    if key is None:
        return {}, []
    names = dict.fromkeys(turn[key] for turn in turns if type(turn.get(key)) is str and len(turn[key]) <= _MAX_ROLE)
    foreign = [name for name in names if name.lower() not in ROLES][:_MAX_ROLES]
    if {name.lower() for name in foreign} == {"q", "a"}:
        return {name: "user" if name.lower() == "q" else "assistant" for name in foreign}, []
    known = {name: role for name in foreign if (role := _role(name)) is not None}
    return known, [name for name in foreign if name not in known]


def _role(name: Any) -> Role | None:
    if type(name) is not str:
        return None
    word = plain_name(name)
    if word in _USERS.split():
        return "user"
    return "assistant" if word in _ASSISTANTS.split() else ROLES.get(word)


def _question_and_answer(records: list[dict[str, Any]]) -> dict[str, str] | None:
    """The names of a question and its answer, or of a caption; None if neither is there."""
    texts = [name for name in _keys(records) if any(type(record.get(name)) is str for record in records)]
    question, answer, caption = _only(texts, _QUESTION), _only(texts, _ANSWER), _only(texts, _CAPTION)
    if question is None or answer is None:
        return None if caption is None else _mapped({caption: (CAPTION_KEYS, "caption")})
    if question == "instruction":
        return _mapped({question: ((), "instruction"), answer: ((), "output")})
    return _mapped({question: ((), "question"), answer: ((), "answer")})


def _images(objects: list[dict[str, Any]], fields: dict[str, str], questions: list[str], is_turn: bool) -> None:
    """Add the keys whose values are paths of image files, if the adapter does not find them by itself."""
    names = [name for name in _keys(objects) if name not in fields and any(_is_image(one.get(name)) for one in objects)]
    if any(name in IMAGE_KEYS or numbered(name) for name in names):
        return
    if len(names) == 1:
        fields[names[0]] = "images" if any(type(one.get(names[0])) is list for one in objects) else "image"
    elif is_turn and names:
        questions.append(f"not guessed: which of {', '.join(names)} is the image of a turn; map one in `fields`")
    else:
        fields.update((name, ours) for name, ours in zip(names, NUMBERED_KEYS, strict=False))


def _is_image(value: Any) -> bool:
    """Whether a value is the path or URL of an image file, or a list of them."""
    if type(value) is list:
        return bool(value) and all(_is_image(item) for item in value)
    return is_image_path(value)


def _is_content(value: Any) -> bool:
    return type(value) is str or (type(value) is list and any(type(part) is dict for part in value))


def _mapped(names: dict[str, tuple[Sequence[str], str]]) -> dict[str, str]:
    """Own name -> the adapter's, without those that the adapter knows."""
    return {own: ours for own, (known, ours) in names.items() if own not in known and own != ours}


def _named(names: list[str], ours: Sequence[str], words: str) -> str | None:
    """The one of the names that the adapter reads, else the one that is a known word."""
    return next((name for name in ours if name in names), None) or _only(names, words)


def _only(names: list[str], words: str) -> str | None:
    """The one name that is a known word; of several, the one whose word comes first in the list."""
    known = words.split()
    found = sorted((known.index(word), name) for name in names if (word := plain_name(name)) in known)
    return found[0][1] if found else None


def _keys(objects: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for one in objects for name in one if has_value(one[name])))


def _list(value: Any) -> list[Any]:
    """A list, or the one in JSON text."""
    if type(value) is str and value[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    return value if type(value) is list else []

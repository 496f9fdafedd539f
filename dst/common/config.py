"""Turn JSON values into a tree of config classes, and report everything that is wrong with them at once.

dst.common.config_class declares the classes, dst.common.yaml_files reads the values. pydantic checks types, ranges and
unknown keys, and makes the JSON schema. Hand-written are the problems (`build`): one line each, with dotted path, got,
expected and the nearest known key. pydantic reports each member of a union separately, names no nearest key, and checks
nothing across keys if any key is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from dst.common.config_class import ALSO_CALLED, RULES, UNKNOWN_KEYS
from dst.common.suggest import nearest
from dst.common.yaml_files import kind_of

T = TypeVar("T")
Place = tuple[int | str, ...]


def build(
    cls: type[T], value: object, where: str = "", *, check: Callable[[Any], Sequence[str]] | None = None
) -> tuple[T | None, list[str]]:
    """Make a config class from JSON values (parsed YAML or JSON), and say what is wrong.

    check: problems between keys, each beginning with its path. If keys are wrong themselves, it gets the others with
    the defaults of those, and its lines that name such a key are left out. With a problem other than an unknown key the
    result is None.
    """
    errors = _errors(cls, value)
    problems = _lines(errors, value, where, cls)
    wrong = [_location(error, value)[0] for error in errors]
    rest = _without(value, wrong) if errors and () not in wrong else value
    if errors and (rest is value or _errors(cls, rest)):
        return None, problems
    kind: type = cls
    made: T = _adapter(kind).validate_json(json.dumps(rest))
    unusable = {
        next((str(step) for step in reversed(place) if isinstance(step, str)), "")
        for error, place in zip(errors, wrong, strict=True)
        if error["type"] != "unexpected_keyword_argument"
    }
    if check is not None:
        problems += [line for line in check(made) if not unusable.intersection(re.findall(r"\w+", line))]
    return (None if unusable else made), problems


def json_schema(cls: type) -> dict[str, Any]:
    """The JSON schema (2020-12) of a config class, for editors; texts under fields are descriptions of one line."""
    RULES["use_attribute_docstrings"] = True  # parses the source, for which reading a configuration need not wait
    try:
        schema: dict[str, Any] = _one_line(TypeAdapter(cls).json_schema())
    finally:
        del RULES["use_attribute_docstrings"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def field_docs(cls: type) -> dict[str, str]:
    """Field name -> the sentence under it in the class body."""
    properties: dict[str, dict[str, Any]] = json_schema(cls)["properties"]
    return {name: entry["description"] for name, entry in properties.items() if "description" in entry}


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "keys",
    "dataclass_type": "keys",
    "finite_number": "a finite number",
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_short": "text that is not empty",
}
"""What pydantic's errors want, in the words of YAML"""


@lru_cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _errors(cls: type, value: object) -> list[ErrorDetails]:
    """As JSON, since strict dataclasses take no mapping from Python. There a list is a tuple; all else stays strict."""
    try:
        _adapter(cls).validate_json(json.dumps(value))
    except ValidationError as error:
        details = error.errors(include_url=False)
        return [each for each in details if each["type"] != "too_short" or not _has_inside(details, each["loc"])]
    return []


def _has_inside(errors: Sequence[ErrorDetails], loc: Place) -> bool:
    """Whether entries of that list are wrong: pydantic does not count them, so it finds the list too short as well."""
    return any(each["loc"][: len(loc)] == loc and len(each["loc"]) > len(loc) for each in errors)


def _location(error: ErrorDetails, value: Any) -> tuple[Place, bool]:
    """Where in the value it is, and whether a member of a union says so, whose name pydantic puts into the path."""
    place: list[int | str] = []
    for step in error["loc"]:
        if isinstance(value, dict):
            inside = step in value
        else:
            inside = isinstance(value, list) and isinstance(step, int) and step < len(value)
        if inside:
            place.append(step)
            value = _at(value, (step,))
        elif error["type"] == "missing":
            place.append(step)
        else:
            return tuple(place), True
    return tuple(place), False


def _lines(errors: Sequence[ErrorDetails], value: object, where: str, cls: type) -> list[str]:
    """A line for each place."""
    lines: dict[Place, str] = {}
    members: dict[Place, list[str]] = {}
    for error in errors:
        place, in_union = _location(error, value)
        path = _join(where, place) or "the file"
        if in_union:
            members.setdefault(place, []).append(_expected(error))
            got = _at(value, place)
            lines[place] = f"{path}: got {kind_of(got)} {_short(got)}; expected {' or '.join(members[place])}"
        else:
            lines[place] = f"{path}: {_problem(error, cls, place)}"
    return list(lines.values())


def _problem(error: ErrorDetails, cls: type, place: Place) -> str:
    got = error["input"]
    if error["type"] == "missing":
        return "missing"
    if error["type"] == "unexpected_keyword_argument":
        known, advice = _known(cls, place[:-1])
        key = next((key for key, other in known.items() if other == place[-1]), None)
        hint = nearest(str(place[-1]), known) if key is None else f"; its name here is {key}"
        return f"unknown key{hint or '; known are '}{'' if hint else ', '.join(known)}{advice}"
    if error["type"] == "literal_error":
        hint = nearest(got, _choices(error)) if isinstance(got, str) else ""
        return f"got {got!r}; expected one of {', '.join(_choices(error))}{hint}"
    if error["type"] == "float_type" and isinstance(got, int) and not isinstance(got, bool):
        return f"got {_short(got)}; expected {_EXPECTED['finite_number']}"  # a type error in pydantic 2.11
    if error["type"].endswith("_type"):
        shown = kind_of(got) if _EXPECTED.get(error["type"]) in ("a list", "keys") else f"{kind_of(got)} {_short(got)}"
    else:
        shown = _short(got)
    return f"got {shown}; expected {_expected(error)}"


def _expected(error: ErrorDetails) -> str:
    if error["type"] == "literal_error":
        return " or ".join(_choices(error))
    return _EXPECTED.get(error["type"], error["msg"]).format(**error.get("ctx", {}))


def _choices(error: ErrorDetails) -> list[str]:
    return re.findall(r"'([^']*)'", error["ctx"]["expected"])


def _known(cls: Any, place: Place) -> tuple[dict[str, str | None], str]:
    """The keys at this place of a config class with their names elsewhere, and the advice for other keys."""
    schema = _adapter(cls).json_schema()
    parts, node = schema.get("$defs", {}), schema
    for step in (*place, None):
        nodes = [node, *node.get("anyOf", ())]
        nodes = [parts[one["$ref"].rpartition("/")[2]] if "$ref" in one else one for one in nodes]
        if step is None:
            advice = node.get(UNKNOWN_KEYS)
            keys = {key: each.get(ALSO_CALLED) for one in nodes for key, each in one.get("properties", {}).items()}
            return keys, f"; {advice}" if advice else ""
        node = next(inside for one in nodes if (inside := _inside(one, step)) is not None)
    raise AssertionError("the last step returns")


def _inside(schema: Any, step: int | str) -> Any:
    """The schema of a list's entries, of a key of a config class, or of any key of a mapping; None if it is neither."""
    if isinstance(step, int):
        return schema.get("items")
    return schema.get("properties", {}).get(step) or schema.get("additionalProperties") or None


def _without(value: Any, places: Iterable[Place]) -> Any:
    """A copy without the keys there; a whole list goes with a wrong entry of it."""
    copy = json.loads(json.dumps(value))
    for place in places:
        node, last = copy, None
        for step in place:
            if isinstance(node, dict) and step in node:
                last, node = (node, step), node[step]
            elif isinstance(node, list) and isinstance(step, int) and step < len(node):
                node = node[step]
            else:
                break
        if last is not None:
            last[0].pop(last[1])
    return copy


def _one_line(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            key: " ".join(value.split()) if key == "description" and isinstance(value, str) else _one_line(value)
            for key, value in schema.items()
            if not (key == "title" and isinstance(value, str))
        }
    return [_one_line(each) for each in schema] if isinstance(schema, list) else schema


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _at(value: Any, place: Place) -> Any:
    for step in place:
        value = value[step]
    return value


def _join(where: str, place: Place) -> str:
    return ".".join([*([where] if where else []), *map(_step, place)])


def _step(step: int | str) -> str:
    """A step of a path; a key that does not read as one is quoted."""
    plain = isinstance(step, int) or (re.fullmatch(r"[^\s'\"]+", step) and step.isprintable())
    return str(step) if plain else repr(step)

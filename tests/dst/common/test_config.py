"""Strict configuration: every mistake in one go, each with its dotted path, what was got and what was wanted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from dst.common.config import (
    FreeKeys,
    FreeValue,
    Positive,
    build,
    config_class,
    field_docs,
    json_schema,
    override,
    read_yaml,
)
from dst.common.suggest import nearest
from preprocess.blend.config import Blend
from preprocess.errors import ConfigError


@config_class
class Part:
    """The class's own sentence is no field's."""

    name: str
    """What it is called.
    Over two lines."""

    weight: float = 1.0
    """How much of it."""

    count: int | Literal["all"] | None = None

    kind: Literal["folder", "zip", "parquet"] = "folder"
    """Where it lies."""


@config_class
class Tree:
    seed: int
    on: bool = False
    level: Annotated[int, Field(ge=0, le=2)] = 0
    words: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    main: Part | None = None
    options: FreeKeys = field(default_factory=dict)
    more: FreeKeys = field(default_factory=dict)
    anything: FreeValue = None


def wrong(**values: Any) -> list[str]:
    made, problems = build(Tree, {"seed": 1, **values})
    assert made is None or all("unknown key" in problem for problem in problems)
    return problems


def test_a_whole_tree_is_built() -> None:
    made, problems = build(
        Tree,
        {
            "seed": 3,
            "on": True,
            "level": 2,
            "words": ["a", "b"],
            "parts": [{"name": "p", "weight": 2, "count": "all"}, {"name": "q", "count": 7, "kind": "zip"}],
            "main": {"name": "m", "count": None},
            "options": {"x": [1, {"y": None}]},
            "more": {"z": 1},
            "anything": [1, "2"],
        },
    )
    assert problems == []
    assert made == Tree(
        seed=3,
        on=True,
        level=2,
        words=("a", "b"),
        parts=(Part(name="p", weight=2.0, count="all"), Part(name="q", count=7, kind="zip")),
        main=Part(name="m"),
        options={"x": [1, {"y": None}]},
        more={"z": 1},
        anything=[1, "2"],
    )
    assert made is not None
    assert type(made.parts[0].weight) is float


def test_defaults_fill_what_is_not_there() -> None:
    assert build(Tree, {"seed": 1}) == (Tree(seed=1), [])


PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"sed": 2}, "sed: unknown key; did you mean seed?"),
    "unknown key without neighbour": (
        {"qqq": 2},
        "qqq: unknown key; known are seed, on, level, words, parts, main, options, more, anything",
    ),
    "nested unknown key": (
        {"parts": [{"name": "a"}, {"name": "b", "wieght": 1}]},
        "parts.1.wieght: unknown key; did you mean weight?",
    ),
    "missing in a list": ({"parts": [{}]}, "parts.0.name: missing"),
    "text for a number": ({"seed": "1"}, "seed: got text '1'; wanted a whole number"),
    "broken number for whole": ({"seed": 1.5}, "seed: got a number 1.5; wanted a whole number"),
    "true for a number": ({"seed": True}, "seed: got true/false True; wanted a whole number"),
    "nothing for a number": ({"seed": None}, "seed: got nothing None; wanted a whole number"),
    "number for true": ({"on": 1}, "on: got a number 1; wanted true or false"),
    "text for true": ({"on": "yes"}, "on: got text 'yes'; wanted true or false"),
    "number for text": ({"parts": [{"name": 5}]}, "parts.0.name: got a number 5; wanted text"),
    "false for text": ({"main": {"name": False}}, "main.name: got true/false False; wanted text"),
    "text for a list": ({"words": "abc"}, "words: got text; wanted a list"),
    "keys for a list": ({"words": {"a": 1}}, "words: got keys; wanted a list"),
    "a number in a list": ({"words": ["a", 1]}, "words.1: got a number 1; wanted text"),
    "a list for keys": ({"options": []}, "options: got a list; wanted keys"),
    "text for keys": ({"more": "a"}, "more: got text; wanted keys"),
    "a list for a part": ({"parts": [["name"]]}, "parts.0: got a list; wanted keys"),
    "text for an optional part": ({"main": "m"}, "main: got text; wanted keys"),
    "optional part": ({"main": {"nmae": "m"}}, "main.nmae: unknown key; did you mean name?"),
    "choice": (
        {"parts": [{"name": "a", "kind": "Parquet"}]},
        "parts.0.kind: got 'Parquet'; wanted one of folder, zip, parquet; did you mean parquet?",
    ),
    "choice without neighbour": (
        {"parts": [{"name": "a", "kind": "s3"}]},
        "parts.0.kind: got 's3'; wanted one of folder, zip, parquet",
    ),
    "choice of another type": ({"level": "1"}, "level: got text '1'; wanted a whole number"),
    "true is no 1": ({"level": True}, "level: got true/false True; wanted a whole number"),
    "false is no 0": ({"level": False}, "level: got true/false False; wanted a whole number"),
    "1.0 is no 1": ({"level": 1.0}, "level: got a number 1.0; wanted a whole number"),
    "a list for a choice": ({"level": [1]}, "level: got a list [1]; wanted a whole number"),
    "union": (
        {"parts": [{"name": "a", "count": 1.5}]},
        "parts.0.count: got a number 1.5; wanted a whole number or all",
    ),
    "union with text": (
        {"main": {"name": "a", "count": "al"}},
        "main.count: got text 'al'; wanted a whole number or all",
    ),
    "union with true": (
        {"main": {"name": "a", "count": True}},
        "main.count: got true/false True; wanted a whole number or all",
    ),
    "nan": ({"main": {"name": "a", "weight": math.nan}}, "main.weight: got nan; wanted a finite number"),
    "infinity": ({"main": {"name": "a", "weight": -math.inf}}, "main.weight: got -inf; wanted a finite number"),
    "a number too large": (
        {"main": {"name": "a", "weight": 10**400}},
        "main.weight: got 1" + 76 * "0" + "...; wanted a finite number",
    ),
    "nan among options": ({"options": {"a": [1, {"b": math.nan}]}}, "options.a.1.b: got nan; wanted a finite number"),
    "infinity for anything": ({"anything": math.inf}, "anything: got inf; wanted a finite number"),
    "true for a weight": ({"main": {"name": "a", "weight": True}}, "main.weight: got true/false True; wanted a number"),
}


@pytest.mark.parametrize(("values", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_mistake_is_one_line_with_path_got_and_wanted(values: dict[str, Any], problem: str) -> None:
    got = wrong(**values)
    # A misspelt required key is missing, too.
    assert problem in got
    assert [line for line in got if line != problem and not line.endswith(".name: missing")] == []


def test_unknown_keys_leave_the_rest_to_be_looked_at() -> None:
    made, problems = build(
        Tree, {"seed": 3, "sed": 1, "main": {"name": "a", "nam": "b"}, "parts": [{"name": "c", "x": 1}]}
    )
    assert made == Tree(seed=3, main=Part(name="a"), parts=(Part(name="c"),))
    assert [problem.partition(":")[0] for problem in problems] == ["parts.0.x", "main.nam", "sed"]
    assert build(Tree, {"seed": "3", "sed": 1})[0] is None


def test_all_mistakes_are_reported_at_once() -> None:
    made, problems = build(
        Tree,
        {
            "on": 3,
            "parts": [{"weight": "x"}, {"name": "a", "kinds": 1}],
            "words": 1,
            "main": {"name": None, "count": []},
        },
        "config",
    )
    assert made is None
    assert problems == [
        "config.seed: missing",
        "config.on: got a number 3; wanted true or false",
        "config.words: got a number; wanted a list",
        "config.parts.0.name: missing",
        "config.parts.0.weight: got text 'x'; wanted a number",
        "config.parts.1.kinds: unknown key; did you mean kind?",
        "config.main.name: got nothing None; wanted text",
        "config.main.count: got a list []; wanted a whole number or all",
    ]


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_what_is_no_mapping_is_one_problem(value: object) -> None:
    made, (problem,) = build(Tree, value)
    assert made is None
    assert problem.startswith("the file: got ")
    assert problem.endswith("; wanted keys")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([one.name for one in dataclasses.fields(Tree)]) | st.text(max_size=4), JSON))
def test_any_value_gives_a_tree_or_problems_of_one_line_each(value: dict[str, Any]) -> None:
    made, problems = build(Tree, value)
    assert (made is None) == bool(problems)


@config_class
class Range:
    low: Positive = 1
    high: Positive = 9
    step: Positive = 1
    words: tuple[str, ...] = ()


def in_order(made: Range) -> list[str]:
    return [
        *([f"low: got {made.low}; wanted less than high"] if made.low >= made.high else []),
        *([f"step: got {made.step}; wanted 5 at most"] if made.step > 5 else []),
    ]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"low": 9, "step": 6}, ["low: got 9; wanted less than high", "step: got 6; wanted 5 at most"]),
        ({"low": 9, "hihg": 10}, ["hihg: unknown key; did you mean high?", "low: got 9; wanted less than high"]),
        ({"low": 9, "words": 3}, ["words: got a number; wanted a list", "low: got 9; wanted less than high"]),
        ({"low": 9, "high": 0, "step": 6}, ["high: got 0; wanted at least 1", "step: got 6; wanted 5 at most"]),
        ({"low": "9"}, ["low: got text '9'; wanted a whole number"]),
    ],
)
def test_checks_between_keys_come_with_the_rest_unless_a_wrong_key_is_part_of_them(
    values: dict[str, Any], told: list[str]
) -> None:
    assert build(Range, values, check=in_order)[1] == told


def test_the_schema_has_descriptions_ranges_and_no_other_keys() -> None:
    schema = json_schema(Tree)
    part = schema["$defs"]["Part"]
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert (schema["required"], schema["additionalProperties"], part["additionalProperties"]) == (
        ["seed"],
        False,
        False,
    )
    assert part["properties"]["name"] == {"description": "What it is called. Over two lines.", "type": "string"}
    assert part["properties"]["kind"]["enum"] == ["folder", "zip", "parquet"]
    assert (schema["properties"]["level"]["minimum"], schema["properties"]["level"]["maximum"]) == (0, 2)


def test_the_blend_itself_can_be_built_this_way() -> None:
    made, problems = build(Blend, {"tokeniser": "x"})
    assert made is None
    assert "tokeniser: unknown key; did you mean tokenizer?" in problems
    assert "tokenizer: missing" in problems


def test_the_nearest_word_is_only_named_when_it_is_near() -> None:
    assert nearest("vicunna", ["llama2", "vicuna"]) == "; did you mean vicuna?"
    assert nearest("zzz", ["llama2", "vicuna"]) == ""
    assert nearest("zzz", []) == ""


def test_field_docs_are_the_sentences_under_the_fields() -> None:
    assert field_docs(Part) == {
        "name": "What it is called. Over two lines.",
        "weight": "How much of it.",
        "kind": "Where it lies.",
    }


# Reading


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str | bytes], dict[str, Any]]:
    def read(content: str | bytes) -> dict[str, Any]:
        path = tmp_path / "blend.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_yaml(path)

    return read


Read = Callable[[str | bytes], dict[str, Any]]


def test_yaml_is_read(read: Read) -> None:
    text = "a: 1\nb: [x, {c: null}]\nd: größe\ne: |\n  two\n  lines\n"
    assert read(text) == {"a": 1, "b": ["x", {"c": None}], "d": "größe", "e": "two\nlines\n"}


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.0e-3", "+1e-3", "0.001", "10e-4", "1.e-3"])
def test_a_number_with_an_exponent_is_a_number(read: Read, number: str) -> None:
    value = read(f"a: {number}")["a"]
    assert type(value) is float
    assert value == 0.001


@pytest.mark.parametrize(
    "text", ["1e", "e3", "1e-", "1e3x", "12e3abc", "1-e3", "0x1g", "1e3-4", "2024-01-31", "2024-02-3"]
)
def test_a_word_that_looks_like_a_number_stays_text(read: Read, text: str) -> None:
    assert read(f"a: {text}") == {"a": text}


def test_mappings_can_be_merged(read: Read) -> None:
    text = "base: &base {x: 1, y: 2}\none: {<<: *base, y: 3}\ntwo: {<<: *base}\n"
    assert read(text) == {"base": {"x": 1, "y": 2}, "one": {"x": 1, "y": 3}, "two": {"x": 1, "y": 2}}


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "a repeated key": ("a: 1\nb: 2\na: 3\n", "blend.yaml, line 3, column 1: broken YAML: the key 'a' stands twice"),
    "a repeated key below": ("a:\n  - b: 1\n    b: 1\n", "line 3, column 5: broken YAML: the key 'b' stands twice"),
    "a number of 65 bits": (
        "a: 9223372036854775808",
        "line 1, column 4: broken YAML: 9223372036854775808 takes more than",
    ),
    "an open list": ("a: [1, 2\nb: 3\n", "blend.yaml, line 2, column 2: broken YAML: expected ',' or ']'"),
    "a tab": ("a:\n\tb: 1\n", "blend.yaml, line 2, column 1: broken YAML: found character '\\t'"),
    "two colons": ("a: b: c\n", "blend.yaml, line 1, column 5: broken YAML: mapping values are not allowed here"),
    "a number as key": ("1: a\n", "line 1, column 1: broken YAML: the key 1 is not text"),
    "yes as key": ("a: 1\nyes: a\n", "line 2, column 1: broken YAML: the key True is not text"),
    "nothing as key": ("~: a\n", "line 1, column 1: broken YAML: the key None is not text"),
    "a list as key": ("? [a]\n: b\n", "line 1, column 3: broken YAML: the key ['a'] is not text"),
    "a Python object": ("a: !!python/object:os.system {}\n", "line 1, column 4: broken YAML: could not determine"),
    "an unknown anchor": ("a: *b\n", "line 1, column 4: broken YAML: found undefined alias 'b'"),
    "two documents": ("a: 1\n---\nb: 1\n", "line 2, column 1: broken YAML: but found another document"),
    "a list": ("- a\n", "blend.yaml: holds a list; wanted keys such as `tokenizer:` and `datasets:`"),
    "nothing": ("", "blend.yaml: holds nothing; wanted keys"),
    "a word": ("hello\n", "blend.yaml: holds text; wanted keys"),
    "bytes": (b"a: \xff\n", "blend.yaml: cannot be read ("),
    "a control character": ("a: \x07\n", "blend.yaml: broken YAML: "),
    "bytes in base64": (
        "a: !!binary aGk=\n",
        "line 1, column 4: broken YAML: tag:yaml.org,2002:binary is no value of JSON",
    ),
    "half of a character": ('a: "\\ud800"\n', "line 1, column 4: broken YAML: '\\ud800' is half of a character"),
    "deep": ("[" * 5000, "blend.yaml: broken YAML: "),
}


@pytest.mark.parametrize(("content", "problem"), BROKEN.values(), ids=BROKEN)
def test_broken_yaml_is_one_problem_with_its_place(read: Read, content: str | bytes, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(content)
    (got,) = caught.value.problems
    assert problem in got
    assert "\n" not in got


def test_a_file_that_is_not_there_and_a_folder_are_a_problem(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_yaml(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: no", "name: got true/false False; wanted text"),
        ("name: on", "name: got true/false True; wanted text"),
        ("name: 1.10", "name: got a number 1.1; wanted text"),
        ("name: 007", "name: got a number 7; wanted text"),
        ("name: 12:30", "name: got a number 750; wanted text"),
        ("name: ~", "name: got nothing None; wanted text"),
        ("name:", "name: got nothing None; wanted text"),
        ("name: 1e3", "name: got a number 1000.0; wanted text"),
        ("{name: a, weight: .nan}", "weight: got nan; wanted a finite number"),
        ("{name: a, weight: .inf}", "weight: got inf; wanted a finite number"),
        ("{name: a, kind: off}", "kind: got False; wanted one of folder, zip, parquet"),
    ],
)
def test_what_yaml_turns_into_another_type_is_a_problem(read: Read, text: str, problem: str) -> None:
    assert build(Part, read(text))[1] == [problem]


# Overriding


def tree() -> dict[str, Any]:
    return {
        "seed": 1,
        "main": {"name": "m"},
        "parts": [{"name": "coco"}, {"name": "vqa", "weight": 2}],
        "words": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("seed=7", ["seed"], 7),
        ("main.weight=1e-3", ["main", "weight"], 0.001),
        ("main.name=a=b", ["main", "name"], "a=b"),
        ("new.below.it=true", ["new", "below", "it"], True),
        ("parts.0.weight=0.5", ["parts", 0, "weight"], 0.5),
        ("parts.vqa.weight=0.5", ["parts", 1, "weight"], 0.5),
        ("parts.coco={name: x}", ["parts", 0], {"name": "x"}),
        ("words.1=c", ["words", 1], "c"),
        ("words=[c, d]", ["words"], ["c", "d"]),
        (" seed =7", ["seed"], 7),
        ("seed=", ["seed"], None),
    ],
)
def test_a_setting_changes_its_place_and_nothing_else(setting: str, path: list[Any], value: Any) -> None:
    changed = tree()
    override(changed, [setting])
    wanted: Any = tree()
    node = wanted
    for key in path[:-1]:
        node = node.setdefault(key, {}) if isinstance(node, dict) else node[key]
    node[path[-1]] = value
    assert changed == wanted


def test_later_settings_win() -> None:
    changed = tree()
    override(changed, ["seed=2", "seed=3"])
    assert changed["seed"] == 3


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("seed", "wanted the form a.b=value"),
        ("=3", "wanted the form a.b=value"),
        ("main..name=3", "wanted the form a.b=value"),
        (".seed=3", "wanted the form a.b=value"),
        ("parts.vqq.weight=1", "no entry 'vqq'; there are coco, vqa; did you mean vqa?"),
        ("parts.2.weight=1", "no entry '2'; there are coco, vqa"),
        ("parts.-1=1", "no entry '-1'; there are coco, vqa"),
        ("words.5=c", "no entry '5'; there are 2"),
        ("words.²=c", ""),
        ("seed.deep=1", "deep: stands below a number, which has no keys"),
        ("main.name.deep.er=1", "deep: stands below text, which has no keys"),
        ("main.name=[", "broken YAML: expected the node content, but found '<stream end>'"),
        ("main={a: 1, a: 2}", "broken YAML: the key 'a' stands twice"),
        ("seed=!!set {a}", "broken YAML: tag:yaml.org,2002:set is no value of JSON"),
        ("seed=\x07", "unacceptable character #x0007: special characters are not allowed"),
    ],
)
def test_a_setting_that_cannot_work_is_one_line(setting: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(tree(), [setting])
    (got,) = caught.value.problems
    assert got.startswith(f"--set {setting}: {problem}")
    assert "\n" not in got


def test_all_settings_that_cannot_work_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        override(tree(), ["seed", "main.name=x", "parts.vqq=1"])
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == ["--set seed", "--set parts.vqq=1"]

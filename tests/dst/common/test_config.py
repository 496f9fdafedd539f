"""Strict configuration: every mistake in one go, each with its dotted path, what was got and what was expected."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Le
from hypothesis import given
from hypothesis import strategies as st

from dst.common.config import build, field_docs, json_schema
from dst.common.config_class import FreeKeys, FreeValue, config_class
from dst.common.yaml_files import read_yaml
from preprocess.blend.config import Blend


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
    """Where it is."""


@config_class
class Tree:
    seed: int
    on: bool = False
    level: Annotated[int, Ge(0), Le(2)] = 0
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
    "text for a number": ({"seed": "1"}, "seed: got text '1'; expected a whole number"),
    "broken number for whole": ({"seed": 1.5}, "seed: got a number 1.5; expected a whole number"),
    "true for a number": ({"seed": True}, "seed: got true/false True; expected a whole number"),
    "nothing for a number": ({"seed": None}, "seed: got nothing None; expected a whole number"),
    "number for true": ({"on": 1}, "on: got a number 1; expected true or false"),
    "text for true": ({"on": "yes"}, "on: got text 'yes'; expected true or false"),
    "number for text": ({"parts": [{"name": 5}]}, "parts.0.name: got a number 5; expected text"),
    "false for text": ({"main": {"name": False}}, "main.name: got true/false False; expected text"),
    "text for a list": ({"words": "abc"}, "words: got text; expected a list"),
    "keys for a list": ({"words": {"a": 1}}, "words: got keys; expected a list"),
    "a number in a list": ({"words": ["a", 1]}, "words.1: got a number 1; expected text"),
    "a list for keys": ({"options": []}, "options: got a list; expected keys"),
    "text for keys": ({"more": "a"}, "more: got text; expected keys"),
    "a list for a part": ({"parts": [["name"]]}, "parts.0: got a list; expected keys"),
    "text for an optional part": ({"main": "m"}, "main: got text; expected keys"),
    "optional part": ({"main": {"nmae": "m"}}, "main.nmae: unknown key; did you mean name?"),
    "choice": (
        {"parts": [{"name": "a", "kind": "Parquet"}]},
        "parts.0.kind: got 'Parquet'; expected one of folder, zip, parquet; did you mean parquet?",
    ),
    "choice without neighbour": (
        {"parts": [{"name": "a", "kind": "s3"}]},
        "parts.0.kind: got 's3'; expected one of folder, zip, parquet",
    ),
    "choice of another type": ({"level": "1"}, "level: got text '1'; expected a whole number"),
    "true is not 1": ({"level": True}, "level: got true/false True; expected a whole number"),
    "false is not 0": ({"level": False}, "level: got true/false False; expected a whole number"),
    "1.0 is not 1": ({"level": 1.0}, "level: got a number 1.0; expected a whole number"),
    "a list for a choice": ({"level": [1]}, "level: got a list [1]; expected a whole number"),
    "union": (
        {"parts": [{"name": "a", "count": 1.5}]},
        "parts.0.count: got a number 1.5; expected a whole number or all",
    ),
    "union with text": (
        {"main": {"name": "a", "count": "al"}},
        "main.count: got text 'al'; expected a whole number or all",
    ),
    "union with true": (
        {"main": {"name": "a", "count": True}},
        "main.count: got true/false True; expected a whole number or all",
    ),
    "nan": ({"main": {"name": "a", "weight": math.nan}}, "main.weight: got nan; expected a finite number"),
    "infinity": ({"main": {"name": "a", "weight": -math.inf}}, "main.weight: got -inf; expected a finite number"),
    "a number too large": (
        {"main": {"name": "a", "weight": 10**400}},
        "main.weight: got 1" + 76 * "0" + "...; expected a finite number",
    ),
    "nan among options": ({"options": {"a": [1, {"b": math.nan}]}}, "options.a.1.b: got nan; expected a finite number"),
    "infinity for anything": ({"anything": math.inf}, "anything: got inf; expected a finite number"),
    "true for a weight": (
        {"main": {"name": "a", "weight": True}},
        "main.weight: got true/false True; expected a number",
    ),
}


@pytest.mark.parametrize(("values", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_mistake_is_one_line_with_path_got_and_expected(values: dict[str, Any], problem: str) -> None:
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
        "config.on: got a number 3; expected true or false",
        "config.words: got a number; expected a list",
        "config.parts.0.name: missing",
        "config.parts.0.weight: got text 'x'; expected a number",
        "config.parts.1.kinds: unknown key; did you mean kind?",
        "config.main.name: got nothing None; expected text",
        "config.main.count: got a list []; expected a whole number or all",
    ]


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_what_is_not_a_mapping_is_one_problem(value: object) -> None:
    made, (problem,) = build(Tree, value)
    assert made is None
    assert problem.startswith("the file: got ")
    assert problem.endswith("; expected keys")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([one.name for one in dataclasses.fields(Tree)]) | st.text(max_size=4), JSON))
def test_any_value_gives_a_tree_or_problems_of_one_line_each(value: dict[str, Any]) -> None:
    made, problems = build(Tree, value)
    assert (made is None) == any("unknown key" not in problem for problem in problems)
    assert not any("\n" in problem for problem in problems)


def test_a_key_that_does_not_read_as_one_is_quoted() -> None:
    value = {"seed": 0, "": 1, "two words": 2, "a\nb": 3, "options.x": 4}
    _, problems = build(Tree, value)
    assert [problem.partition(":")[0] for problem in problems] == ["''", "'two words'", "'a\\nb'", "options.x"]


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


def test_field_docs_are_the_sentences_under_the_fields() -> None:
    assert field_docs(Part) == {
        "name": "What it is called. Over two lines.",
        "weight": "How much of it.",
        "kind": "Where it is.",
    }


# Reading


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: no", "name: got true/false False; expected text"),
        ("name: on", "name: got true/false True; expected text"),
        ("name: 1.10", "name: got a number 1.1; expected text"),
        ("name: 007", "name: got a number 7; expected text"),
        ("name: 12:30", "name: got a number 750; expected text"),
        ("name: ~", "name: got nothing None; expected text"),
        ("name:", "name: got nothing None; expected text"),
        ("name: 1e3", "name: got a number 1000.0; expected text"),
        ("{name: a, weight: .nan}", "weight: got nan; expected a finite number"),
        ("{name: a, weight: .inf}", "weight: got inf; expected a finite number"),
        ("{name: a, kind: off}", "kind: got False; expected one of folder, zip, parquet"),
    ],
)
def test_what_yaml_turns_into_another_type_is_a_problem(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert build(Part, read_yaml(tmp_path / "a.yaml"))[1] == [problem]

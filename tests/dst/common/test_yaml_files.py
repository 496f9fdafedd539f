"""dst.common.yaml_files: YAML as JSON values with unique keys, and settings that change them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dst.common.yaml_files import override, read_yaml
from dst.errors import ConfigError


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
    "a repeated key": ("a: 1\nb: 2\na: 3\n", "blend.yaml, line 3, column 1: broken YAML: the key 'a' occurs twice"),
    "a repeated key below": ("a:\n  - b: 1\n    b: 1\n", "line 3, column 5: broken YAML: the key 'b' occurs twice"),
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
    "a list": ("- a\n", "blend.yaml: holds a list; expected keys such as `tokenizer:` and `datasets:`"),
    "nothing": ("", "blend.yaml: holds nothing; expected keys"),
    "a word": ("hello\n", "blend.yaml: holds text; expected keys"),
    "bytes": (b"a: \xff\n", "blend.yaml: cannot be read ("),
    "a control character": ("a: \x07\n", "blend.yaml: broken YAML: "),
    "bytes in base64": (
        "a: !!binary aGk=\n",
        "line 1, column 4: broken YAML: tag:yaml.org,2002:binary is not a JSON value",
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
    expected: Any = tree()
    node = expected
    for key in path[:-1]:
        node = node.setdefault(key, {}) if isinstance(node, dict) else node[key]
    node[path[-1]] = value
    assert changed == expected


def test_later_settings_win() -> None:
    changed = tree()
    override(changed, ["seed=2", "seed=3"])
    assert changed["seed"] == 3


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("seed", "expected the form a.b=value"),
        ("=3", "expected the form a.b=value"),
        ("main..name=3", "expected the form a.b=value"),
        (".seed=3", "expected the form a.b=value"),
        ("parts.vqq.weight=1", "no entry 'vqq'; there are coco, vqa; did you mean vqa?"),
        ("parts.2.weight=1", "no entry '2'; there are coco, vqa"),
        ("parts.-1=1", "no entry '-1'; there are coco, vqa"),
        ("words.5=c", "no entry '5'; there are 2"),
        ("words.²=c", ""),
        ("seed.deep=1", "deep: is below a number, which has no keys"),
        ("main.name.deep.er=1", "deep: is below text, which has no keys"),
        ("main.name=[", "broken YAML: expected the node content, but found '<stream end>'"),
        ("main={a: 1, a: 2}", "broken YAML: the key 'a' occurs twice"),
        ("seed=!!set {a}", "broken YAML: tag:yaml.org,2002:set is not a JSON value"),
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

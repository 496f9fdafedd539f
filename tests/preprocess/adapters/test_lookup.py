"""Adapters of other packages: used like dsvl's own, and checked where a class of Python checks nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from preprocess.adapters.lookup import find_adapter, read_records
from preprocess.adapters.registry import ADAPTERS
from preprocess.blend.load import load_blend
from preprocess.cli import cli
from preprocess.errors import ConfigError, DataError
from tests.support.adapting import adapted, check_form, conversations, rejects, request_of
from tests.support.extensions import ADAPTER, EXAMPLE, install, write_module
from tests.support.small_blends import write_blend


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """`dsvl-prep` in this process: exit code, stdout, and stderr or the text of the error."""
    done = CliRunner().invoke(cli, list(map(str, arguments)))
    return done.exit_code, done.stdout, done.stderr or str(done.exception or "")


@pytest.mark.usefixtures("example_package")
def test_the_example_reads_its_layout_and_accounts_for_every_record(tmp_path: Path) -> None:
    records = [{"photo": f"{number}.jpg", "description": f" Photo {number}. "} for number in range(3)]
    records += [{"photo": "0.jpg", "description": "Again."}, {"photo": "9.jpg", "description": " "}, {}]
    (tmp_path / "photos").mkdir()
    made = adapted("photo_extensions.described_photos:ADAPTER", tmp_path, {"photos.json": records})
    assert rejects(made) == [("0.jpg", "duplicate_id"), ("9.jpg", "empty_answer"), ("5", "missing_key")]
    assert [item.turns[1].parts for item in conversations(made)] == [("Photo 0.",), ("Photo 1.",), ("Photo 2.",)]
    for item in conversations(made):
        check_form(item)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("ADAPTER = {}", "got an object of type dict; expected an Adapter of preprocess.adapters.base"),
        (
            "def ADAPTER(request): ...",
            "got an object of type function; expected an Adapter of preprocess.adapters.base, ",
        ),
        (
            ADAPTER.replace('annotations=("*.txt",)', 'annotations=("*.txt")'),
            "annotations: got '*.txt'; expected a tuple of patterns, such as ('photos.json',)",
        ),
        (ADAPTER.replace('annotations=("*.txt",)', "annotations=()"), "annotations: got no pattern; expected at least"),
        (ADAPTER.replace("read=read", "read=3"), "read: got an object of type int; expected a function of one Request"),
        (ADAPTER.replace('where="Here."', "where=None"), "where: got None; expected text"),
        (ADAPTER.replace("licence=", "options=[], licence="), "options: expected a dict of name -> Option"),
        (ADAPTER.replace("licence=", "other_layouts=('a',), licence="), "other_layouts: expected a tuple of Layout"),
        (ADAPTER.replace("licence=", 'keys=["id"], licence='), "keys: got ['id']; expected a frozenset of names of"),
    ],
    ids=["dict", "function", "no tuple", "no pattern", "no function", "no text", "no options", "no layout", "no keys"],
)
def test_an_object_that_is_not_an_adapter_says_what_was_expected(
    source: str, expected: str, module_folder: Path
) -> None:
    write_module(module_folder, "lines", source)
    with pytest.raises(ConfigError) as caught:
        find_adapter("lines:ADAPTER", "datasets.0 (x).adapter")
    (line,) = caught.value.problems
    assert line.startswith(f"datasets.0 (x).adapter: lines:ADAPTER: {expected}")


def test_a_blend_reports_its_wrong_adapters_with_everything_else_that_is_wrong(module_folder: Path) -> None:
    write_module(module_folder, "lines", ADAPTER)
    adapters = ["lava", "a.b:c:d", "nowhere:ADAPTER", "lines:ADAPTR", "lines:ADAPTER"]
    datasets = [{"name": f"d{number}", "adapter": name, "options": {"x": 1}} for number, name in enumerate(adapters)]
    with pytest.raises(ConfigError) as caught:
        load_blend(write_blend(module_folder / "blend.yaml", datasets, sead=1))
    lines = [problem.removeprefix("blend.yaml: ") for problem in caught.value.problems]
    assert [line.split(":")[0] for line in lines] == [
        "sead",
        *(f"datasets.{number} (d{number}).adapter" for number in range(4)),
        "datasets.4 (d4).options.x",
    ]
    assert lines[1].endswith("did you mean llava?")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("yield {}", "it yields: got an object of type dict; expected a Conversation or a Reject of preprocess"),
        ("raise KeyError('photo')", "it failed: KeyError: 'photo' ({path}, line 6); correct the adapter"),
        (
            "from preprocess.errors import RejectError\n    raise RejectError('bad', 'x')",
            "it raised a reject (bad: x); expected it to yield one",
        ),
    ],
    ids=["another object", "raises", "raises a reject"],
)
def test_code_that_fails_is_one_line_with_the_adapter(body: str, expected: str, module_folder: Path) -> None:
    source = ADAPTER.replace("    for path in request.annotations:", f"    {body}\n    for path in ():")
    path = write_module(module_folder, "lines", source)
    (module_folder / "a.txt").write_text("one\n")
    with pytest.raises(DataError) as caught:
        list(read_records("lines:ADAPTER", request_of(find_adapter("lines:ADAPTER"), module_folder)))
    assert str(caught.value).startswith(f"adapter lines:ADAPTER: {expected.format(path=path)}")


def test_the_list_shows_installed_adapters_with_the_release_that_they_come_from(module_folder: Path) -> None:
    files = {"lines.py": ADAPTER, "broken.py": "import nothing_like_this\n"}
    entries = {"lines": "lines:ADAPTER", "broken": "broken:ADAPTER", "llava": "lines:ADAPTER"}
    entries = {f"dsvl.adapters/{name}": value for name, value in entries.items()}
    install(module_folder, "my-lines", "1.5", entry_points=entries, files=files)
    code, out, err = run("adapters", "--json")
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["name"] for row in rows] == [*ADAPTERS, "lines"]
    assert [row["extension"] for row in rows] == [None] * len(ADAPTERS) + [
        {"distribution": "my-lines", "version": "1.5"}
    ]
    assert err.splitlines() == [
        "note: my-lines 1.5 has an entry point llava in dsvl.adapters, but llava is a built-in adapter, which nothing "
        "replaces; expected another name in its pyproject.toml",
        "note: entry point broken: broken (broken:ADAPTER): importing broken failed: ModuleNotFoundError: No module "
        f"named 'nothing_like_this' ({module_folder / 'broken.py'}, line 1)",
    ]
    assert "(my-lines 1.5)" in run("adapters", "lines")[1]
    code, out, err = run("adapters", "lines:ADAPTER", "chat", "--json")
    assert [json.loads(line)["name"] for line in out.splitlines()] == ["lines:ADAPTER", "chat"]
    assert run("adapters", "line", "broken")[2].count("NAME: ") == 2


@pytest.mark.usefixtures("example_package")
def test_render_takes_an_adapter_of_another_package() -> None:
    adapter = "photo_extensions.described_photos:ADAPTER"
    code, out, err = run("render", "--adapter", adapter, "--root", EXAMPLE, "--limit", "2")
    assert code == 0, err
    assert "A tall pavilion with curved roofs behind dark trees." in out
    code, out, err = run("render", "--adapter", "photo_extensions.described_photos:ADAPTR", "--root", EXAMPLE)
    assert "has no ADAPTR; did you mean ADAPTER?" in err

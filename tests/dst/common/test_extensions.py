"""Objects that a configuration names: found by module or entry point, and every way in which one is not there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dst.common.extensions import (
    ExtensionPoint,
    InstalledNames,
    installed_names,
    load,
    name_problems,
    origin,
    wrong_object,
)
from dst.errors import ConfigError
from tests.support import extensions
from tests.support.extensions import install, write_module

POINT = ExtensionPoint(group="dsvl.lenses", what="lens", built_in=("wide", "macro"), attribute="LENS")
RAISES = "\n\nraise ValueError('no\\nglass')\n"


def problem(name: str, function: Callable[[ExtensionPoint, str, str], object] = load) -> str:
    with pytest.raises(ConfigError) as caught:
        function(POINT, name, "camera.lens")
    (line,) = caught.value.problems
    return line


def names() -> InstalledNames:
    return installed_names(POINT)


def test_an_object_is_found_by_its_module_and_name(module_folder: Path) -> None:
    write_module(module_folder, "optics.prime", "class Box:\n    inner = 3\nLENS = 5\n")
    assert load(POINT, "optics.prime:LENS", "camera.lens") == 5
    assert load(POINT, "optics.prime:Box.inner", "camera.lens") == 3


def test_an_object_is_found_by_its_entry_point_with_the_release_that_it_comes_from(module_folder: Path) -> None:
    install(
        module_folder,
        "my-optics",
        "1.2",
        entry_points={"dsvl.lenses/prime": "optics.prime:LENS [extra]", "dsvl.other/prime": "other:X"},
        files={"optics/__init__.py": "", "optics/prime.py": "LENS = 5\n"},
    )
    assert load(POINT, "prime", "camera.lens") == 5
    recorded_origin = origin(POINT, "prime", "camera.lens")
    assert (recorded_origin.name, recorded_origin.distribution, recorded_origin.version) == (
        "prime",
        "my-optics",
        "1.2",
    )
    assert origin(POINT, "optics.prime:LENS", "camera.lens").release == "my-optics 1.2"
    assert list(names().names) == ["prime"]
    assert names().notes == ()


@pytest.mark.parametrize("name", ["a.b:c:d", "", " ", ":LENS", "a.b:", "a..b:c", "a-b:c", "a/b.py:LENS", "a:b c"])
def test_a_name_that_is_spelled_wrong_is_answered_with_the_spelling(name: str) -> None:
    assert name_problems(POINT, name, "camera.lens") == [
        f"camera.lens: got {name!r}; expected the name of a lens, or an object of your own as my_package.my_module:LENS"
    ]


def test_an_unknown_name_is_answered_with_the_nearest_of_both_kinds(module_folder: Path) -> None:
    install(module_folder, "my-optics", "1.2", entry_points={"dsvl.lenses/telephoto": "optics:LENS"}, files={})
    expected = "expected macro, wide, an entry point of dsvl.lenses, or an object of your own as "
    (line,) = name_problems(POINT, "macros", "camera.lens")
    assert line == (f"camera.lens: unknown lens 'macros'; {expected}my_package.my_module:LENS; did you mean macro?")
    assert name_problems(POINT, "telefoto", "camera.lens")[0].endswith("did you mean telephoto?")
    assert name_problems(POINT, "xyz", "camera.lens")[0].endswith("my_package.my_module:LENS")


def test_looking_for_a_name_imports_nothing(module_folder: Path) -> None:
    install(
        module_folder,
        "my-optics",
        "1.2",
        entry_points={"dsvl.lenses/prime": "optics:LENS"},
        files={"optics.py": "raise ValueError\n"},
    )
    assert name_problems(POINT, "prime", "camera.lens") == []
    assert name_problems(POINT, "optics:LENS", "camera.lens") == []
    assert "optics" not in sys.modules


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("LENZ = 5\n", "optics.prime has no LENS; did you mean LENZ?"),
        ("", "optics.prime has no LENS"),
        (RAISES, "importing optics.prime failed: ValueError: no glass ({path}, line 3)"),
        ("a = 1\nb = (\n", "importing optics.prime failed: SyntaxError: '(' was never closed ({path}, line 2)"),
        (
            "import glass_that_is_not_there\n",
            "importing optics.prime failed: ModuleNotFoundError: No module named 'glass_that_is_not_there' ({path}, "
            "line 1)",
        ),
        ("import sys\nsys.exit(3)\n", "importing optics.prime failed: SystemExit: 3 ({path}, line 2)"),
    ],
    ids=["another name", "empty", "raises", "syntax", "lacks a package", "exits"],
)
def test_a_module_that_cannot_be_used_is_one_line(source: str, expected: str, module_folder: Path) -> None:
    path = write_module(module_folder, "optics.prime", source)
    assert problem("optics.prime:LENS") == f"camera.lens: optics.prime:LENS: {expected.format(path=path)}"


@pytest.mark.parametrize(
    ("name", "missing"), [("nowhere.x:LENS", "nowhere"), ("optics.nowhere:LENS", "optics.nowhere")]
)
def test_a_module_that_is_not_there_is_answered_with_what_to_do(name: str, missing: str, module_folder: Path) -> None:
    write_module(module_folder, "optics.prime", "")
    assert problem(name) == (
        f"camera.lens: {name}: there is no module {missing}; install the package that has it, or add the folder that "
        "holds it to PYTHONPATH"
    )


def test_a_name_that_two_distributions_have_is_refused_with_both(module_folder: Path) -> None:
    for name in ("my-optics", "your-optics"):
        module = name.replace("-", "_")
        install(
            module_folder, name, "1", entry_points={"dsvl.lenses/prime": f"{module}:LENS"}, files={f"{module}.py": ""}
        )
    assert problem("prime") == (
        "camera.lens: 'prime' is a lens of my-optics 1 (my_optics:LENS) and your-optics 1 (your_optics:LENS); "
        "uninstall one of them, or name the object itself, as my_optics:LENS"
    )


def test_no_distribution_replaces_a_built_in_name(module_folder: Path) -> None:
    install(
        module_folder,
        "my-optics",
        "1",
        entry_points={"dsvl.lenses/wide": "optics:LENS"},
        files={"optics.py": "LENS = 1"},
    )
    assert name_problems(POINT, "wide", "camera.lens") == []
    assert names().names == {}
    assert names().notes == (
        "my-optics 1 has an entry point wide in dsvl.lenses, but wide is a built-in lens, which nothing replaces; "
        "expected another name in its pyproject.toml",
    )


@pytest.mark.parametrize("text", ["[dsvl.lenses]\nno equals sign\n", "[dsvl.lenses]\n\udcff = a:b\n"])
def test_metadata_that_cannot_be_read_is_a_note_and_hides_no_other_distribution(text: str, module_folder: Path) -> None:
    broken = install(module_folder, "a-broken", "1", entry_points="", files={})
    (broken / "entry_points.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    install(
        module_folder,
        "my-optics",
        "1",
        entry_points={"dsvl.lenses/prime": "optics:LENS"},
        files={"optics.py": "LENS = 1"},
    )
    assert load(POINT, "prime", "camera.lens") == 1
    (note,) = names().notes
    assert note.startswith(f"{broken}: its entry points cannot be read: ")
    assert note in name_problems(POINT, "unknown", "camera.lens")[0]


def test_what_an_interrupted_install_left_is_passed_over(module_folder: Path) -> None:
    left = install(
        module_folder, "left", "1", entry_points={"dsvl.lenses/prime": "left:LENS"}, files={"left.py": "LENS = 1"}
    )
    (left / "METADATA").unlink()
    assert names() == InstalledNames(names={}, unreadable=(), shadowed=())
    assert origin(POINT, "left:LENS", "camera.lens").distribution is None


def test_the_first_of_two_installs_of_a_distribution_counts(
    module_folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path_factory.mktemp("first")
    install(module_folder, "my-optics", "1", entry_points={"dsvl.lenses/prime": "optics:LENS"}, files={})
    install(first, "My_Optics", "2", entry_points={"dsvl.lenses/prime": "optics:LENS"}, files={})
    monkeypatch.syspath_prepend(first)
    (entry,) = names().names["prime"]
    assert entry.release == "My_Optics 2"


def test_an_entry_point_that_names_no_object_says_whose_it_is(module_folder: Path) -> None:
    install(module_folder, "my-optics", "1", entry_points={"dsvl.lenses/prime": "optics"}, files={"optics.py": ""})
    assert problem("prime") == (
        "camera.lens: prime of my-optics 1 is 'optics'; expected its pyproject.toml to have an object of your own as "
        "my_package.my_module:LENS"
    )


def test_the_digest_covers_the_package_and_nothing_outside(module_folder: Path) -> None:
    def digest(name: str) -> str:
        extensions.forget("optics", "prime")
        return origin(POINT, name, "camera.lens").sha256

    write_module(module_folder, "optics.prime", "LENS = 5\n")
    alone = write_module(module_folder, "prime", "LENS = 5\n")
    helper = write_module(module_folder, "optics.inner.helper", "GLASS = 1\n")
    before, before_alone = digest("optics.prime:LENS"), digest("prime:LENS")
    write_module(module_folder, "others.prime", "LENS = 5\n")
    (module_folder / "optics/notes.txt").write_text("no code")
    assert (digest("optics.prime:LENS"), digest("prime:LENS")) == (before, before_alone)
    helper.write_text("GLASS = 2\n")
    changed = digest("optics.prime:LENS")
    assert changed != before
    helper.rename(helper.with_name("other.py"))
    assert digest("optics.prime:LENS") not in (before, changed)
    assert digest("prime:LENS") == before_alone
    alone.write_text("LENS = 6\n")
    assert digest("prime:LENS") != before_alone


def test_code_that_only_has_the_name_of_an_installed_package_is_not_taken_for_it(
    module_folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = install(module_folder, "my-optics", "1", entry_points={}, files={"optics.py": "LENS = 1"})
    source = tmp_path_factory.mktemp("source")
    write_module(source, "optics", "LENS = 2")
    monkeypatch.syspath_prepend(source)
    recorded_origin = origin(POINT, "optics:LENS", "camera.lens")
    assert (recorded_origin.distribution, recorded_origin.version, recorded_origin.release) == (
        None,
        None,
        "code of no distribution",
    )
    record = f'{{"url": "{source.as_uri()}", "dir_info": {{"editable": true}}}}'
    (info / "direct_url.json").write_text(record)
    assert origin(POINT, "optics:LENS", "camera.lens").release == "my-optics 1"
    extensions.forget("optics")


def test_an_object_without_source_cannot_be_recorded() -> None:
    assert load(POINT, "itertools:count", "camera.lens")
    assert problem("sys:maxsize", origin) == (
        "camera.lens: sys:maxsize: sys has no file, so its code cannot be recorded; expected a .py file"
    )


def test_source_that_cannot_be_read_is_one_line(module_folder: Path) -> None:
    write_module(module_folder, "optics.prime", "LENS = 5")
    (module_folder / "optics/gone.py").symlink_to(module_folder / "nowhere.py")
    assert problem("optics.prime:LENS", origin) == (
        f"camera.lens: optics.prime:LENS: its source cannot be read ({module_folder / 'optics/gone.py'}: No such "
        "file or directory); expected .py files"
    )


def test_what_an_object_is_instead_is_in_the_words_of_python() -> None:
    assert wrong_object({}, "a lens") == "got an object of type dict; expected a lens"
    assert wrong_object(Path, "a lens") == "got the class Path; expected a lens"

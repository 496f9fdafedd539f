"""tools/environment/setup_venv.py makes an environment once, and names what keeps it from making one.

The installed project is a small one, made here with its wheels, so nothing is downloaded. The script, venv and pip are
the real ones.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import venv_install
import venv_state
from tests.support.venv_projects import (
    PYPROJECT,
    SCRIPT,
    TIMEOUT_S,
    Project,
    ended,
    held,
    release,
)

# One run after another


def test_a_run_installs_what_the_lock_says(ready: Project) -> None:
    assert ready.modules("left", "setuptools") == "left 1\nsetuptools 99\n"
    assert "right-1" not in ready.installed()


def test_a_second_run_does_nothing(ready: Project) -> None:
    before = {path: path.lstat().st_mtime_ns for path in ready.venv.rglob("*")}
    assert ready.run("train") == ""
    assert ready.run() == ""
    assert {path: path.lstat().st_mtime_ns for path in ready.venv.rglob("*")} == before


def test_another_extra_is_added_to_those_that_are_installed(ready: Project) -> None:
    ready.run("dev")
    assert {"left-1", "right-1", "small-1.0"} <= ready.installed()
    assert ready.run("train") == ready.run("dev", "train") == ""


def test_a_changed_lock_changes_what_is_installed(ready: Project) -> None:
    ready.pin(left="2")
    ready.run("train")
    assert ready.modules("left") == "left 2\n"


def test_a_changed_pyproject_is_installed_again(ready: Project) -> None:
    pyproject = ready.folder / "pyproject.toml"
    try:
        pyproject.write_text(PYPROJECT.replace('train = ["left"]', 'train = ["left", "right"]'))
        ready.run("train")
    finally:
        pyproject.write_text(PYPROJECT)
    assert "right-1" in ready.installed()


def test_a_pip_that_outlives_its_killed_parent_is_waited_for(ready: Project) -> None:
    first = held(ready, "dev")
    first.kill()
    first.wait()
    for stream in (first.stdout, first.stderr):
        assert stream is not None
        stream.close()
    second = ready.start("dev")
    assert second.stderr is not None
    assert "waiting for another run" in second.stderr.readline()
    release(ready)
    ended(second, 0)
    assert ready.modules("left", "right") == "left 1\nright 1\n"


def test_of_two_runs_at_once_the_second_waits_and_does_nothing(ready: Project) -> None:
    first = held(ready, "dev")
    second = ready.start("dev")
    assert second.stderr is not None
    assert "waiting for another run" in second.stderr.readline()
    release(ready)
    ended(first, 0)
    assert ended(second, 0) == ""
    assert ready.modules("left", "right") == "left 1\nright 1\n"


def test_a_folder_that_is_not_an_environment_is_left_as_it_is(new: Project) -> None:
    new.venv.mkdir()
    (new.venv / "thesis.tex").touch()
    assert "is not a virtual environment; remove it, or give another folder" in new.run("train", code=1)
    assert [path.name for path in new.venv.iterdir()] == ["thesis.tex"]


def test_a_state_file_that_is_not_one_counts_as_none(ready: Project) -> None:
    for text in ("", "{", "[]", json.dumps({"step": "complete"}), json.dumps({"extras": [], "unknown": 1})):
        (ready.venv / venv_state.STATE).write_text(text)
        assert venv_state.read_state(ready.venv) is None
    assert ready.run("train").startswith("installing into")


# Machines that lack something


def simulated(project: Project, preparation: str) -> str:
    """The last line of a run in a Python with a lack of its own."""
    arguments = ["--venv", str(project.venv), "--lock", str(project.lock), "--project", str(project.folder)]
    code = (
        f"import runpy, sys; {preparation}; sys.argv = {[str(SCRIPT), *arguments]!r}\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 10, 13), (3, 13, 0)])
def test_a_python_that_is_too_old_or_too_new_is_named(new: Project, version: tuple[int, int, int]) -> None:
    line = simulated(new, f"sys.version_info = {version}")
    assert line.startswith(f"Python {version[0]}.{version[1]} (")
    assert "needs Python 3.11 or 3.12" in line
    assert "make test PYTHON=python3.12" in line
    assert not new.venv.exists()


def test_the_script_compiles_on_pythons_that_it_refuses() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]


def test_a_python_without_ensurepip_is_named(new: Project) -> None:
    line = simulated(new, "sys.modules['ensurepip'] = None")
    assert "has no ensurepip" in line
    assert f"apt-get install python{venv_install.python_version()}-venv" in line


def test_a_missing_cpu_build_of_torch_is_explained(ready: Project) -> None:
    ready.pin(torch="2.13.0+cpu")
    output = ready.run("gpu", code=1)
    assert "ERROR: " in output
    assert "give pip an index or a folder that has one (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS)" in output
    assert ready.run("gpu", code=1) == output  # not mistaken for complete


def test_a_cpu_build_is_replaced_where_the_lock_asks_for_another(tmp_path: Path) -> None:
    (tmp_path / "torch-2.13.0+cpu.dist-info").mkdir()
    assert venv_install.cpu_builds_that_are_not_locked(tmp_path, "torch==2.13.0+cpu ; sys_platform == 'linux'") == []
    assert venv_install.cpu_builds_that_are_not_locked(tmp_path, "torch==2.13.0 ; sys_platform == 'linux'") == ["torch"]

"""tools/environment/setup_venv.py makes an environment once, and finishes one that was stopped at any moment.

The installed project is a small one, made here with its wheels, so nothing is downloaded. The script, venv and pip are
the real ones.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

import venv_install
import venv_repair
import venv_state
from tests.support.venv_projects import (
    MANY,
    PYPROJECT,
    SCRIPT,
    TIMEOUT_S,
    Project,
    ended,
    held,
    release,
    small_project,
    stop,
    wait_for,
)


@pytest.fixture
def new(tmp_path: Path) -> Project:
    """A project without an environment."""
    return small_project(tmp_path / "a project")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = small_project(tmp_path_factory.mktemp("made") / "a project")
    project.run("train")
    shutil.copytree(project.venv, project.folder / "kept", symlinks=True)
    return project


def link_or_copy(source: str, target: str) -> None:
    """pip's thousand files are linked: what changes one must remove it first."""
    if "/site-packages/pip/" in source:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


@pytest.fixture
def ready(made: Project) -> Iterator[Project]:
    """A project with an environment that has the extra `train`; copied, since making one takes seconds."""
    shutil.rmtree(made.venv)
    shutil.copytree(made.folder / "kept", made.venv, symlinks=True, copy_function=link_or_copy)
    made.pin()
    yield made
    for path in made.folder.glob("hold.*"):
        path.unlink()


def begun(project: Project) -> venv_state.State:
    """Make the environment look as if a run had been stopped while pip worked."""
    state = venv_state.read_state(project.venv)
    assert state is not None
    venv_state.write_state(project.venv, replace(state, step="packages"))
    return state


def emptied(project: Project, capfd: pytest.CaptureFixture[str]) -> str:
    """What a run says that empties an environment to make it again, which a run does for a new one as well."""
    job = project.job("train")
    assert venv_install.usable_site_packages(job, venv_state.read_state(project.venv), job.target()) is None
    assert {path.name for path in project.venv.iterdir()} <= {venv_state.STATE, venv_state.LOCK}
    return capfd.readouterr().err


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


# Runs that are stopped


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_while_it_made_the_environment_is_resumed(
    new: Project, signum: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    process = new.start("train")
    wait_for((new.site_packages / "pip").exists, process)  # ensurepip is unpacking it
    stop(process, signum)
    if signum == signal.SIGINT:
        assert emptied(new, capfd) == f"making {new.venv} again: the run that made it was stopped\n"
        return
    assert "the run that made it was stopped" in new.run("train")
    assert new.modules("left", "setuptools") == "left 1\nsetuptools 99\n"
    assert new.run("train") == ""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_inside_pip_is_resumed(ready: Project, signum: signal.Signals) -> None:
    stop(held(ready, "dev"), signum)
    assert "right-1" not in ready.installed()
    ready.run("dev")
    assert ready.modules("left", "right") == "left 1\nright 1\n"
    assert ready.run("dev") == ""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_while_pip_unpacked_a_distribution_is_resumed(
    ready: Project, signum: signal.Signals
) -> None:
    process = ready.start("large")
    wait_for((ready.site_packages / "large").exists, process)
    stop(process, signum)
    assert not (ready.site_packages / f"large/part_{MANY - 1}.py").exists()
    ready.run("large")
    assert ready.modules("large.part_0", f"large.part_{MANY - 1}").endswith(f" {MANY - 1}\n")


def test_distributions_that_are_not_complete_are_installed_again(ready: Project) -> None:
    ready.run("dev")
    begun(ready)
    (ready.site_packages / "left/part.py").write_text("")  # shorter than it should be
    (ready.site_packages / "right/__init__.py").unlink()
    (ready.site_packages / "right-1.dist-info/RECORD").unlink()
    output = ready.run("dev")
    assert "installing again what was not complete: left-1, right-1\n" in output
    assert ready.modules("left", "right") == "left 1\nright 1\n"
    assert venv_repair.incomplete(ready.site_packages) == []


def test_a_distribution_without_the_files_that_pip_writes_last_is_not_complete(ready: Project) -> None:
    with zipfile.ZipFile(ready.wheels / "right-1-py3-none-any.whl") as wheel:
        wheel.extractall(ready.site_packages)
    assert [info.name for info in venv_repair.incomplete(ready.site_packages)] == ["right-1.dist-info"]


def test_an_old_version_that_pip_had_set_aside_is_removed(ready: Project) -> None:
    begun(ready)
    (ready.site_packages / "left-1.dist-info").rename(ready.site_packages / "~eft-1.dist-info")
    (ready.site_packages / "~eft").mkdir()
    stale = ready.site_packages / "left/part.py"
    ready.pin(left="2")
    removed = venv_repair.repair(ready.site_packages)
    assert removed == []
    assert not stale.exists()
    assert not list(ready.site_packages.glob("~*"))


def test_a_file_of_two_distributions_is_restored_for_both(ready: Project) -> None:
    info = ready.site_packages / "right-1.dist-info"
    shutil.copytree(ready.site_packages / "left-1.dist-info", info)
    record = (info / "RECORD").read_text().replace("left-1", "right-1")
    (info / "RECORD").write_text(record + "right/missing.py,sha256=0,1\n")
    assert venv_repair.repair(ready.site_packages) == ["right-1", "left-1"]


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


# Environments that cannot be used


@cache
def other_python() -> str | None:
    """Another supported Python on this machine."""
    for version in ("3.11", "3.12"):
        program = shutil.which(f"python{version}")
        if version != venv_install.python_version() and program:
            command = [program, "-c", "import ensurepip, sys; print(sys.executable)"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return done.stdout.strip()
    return None


@pytest.mark.slow
@pytest.mark.skipif(other_python() is None, reason="only one supported Python is installed")
def test_a_run_with_another_python_makes_the_environment_again(ready: Project) -> None:
    python = other_python()
    assert python is not None
    with_its_pip = [python, "-c", "import ensurepip; print(ensurepip.version())"]
    ready.pin(pip=subprocess.run(with_its_pip, check=True, capture_output=True, text=True).stdout.strip())
    assert f"it has Python {venv_install.python_version()} of " in ready.run("train", python=python)
    assert not ready.site_packages.exists()
    assert ready.modules("left") == "left 1\n"


@pytest.mark.parametrize("damage", ["python", "pip"])
def test_an_environment_whose_python_or_pip_does_not_start_is_made_again(
    ready: Project, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if damage == "python":
        (ready.venv / "bin/python").unlink()
        (ready.venv / "bin/python").symlink_to(ready.folder / "a Python that was removed")
    else:
        begun(ready)
        (ready.site_packages / "pip/_internal/cli/main.py").unlink()
    assert not venv_install.is_ready(ready.job("train"), ready.job("train").target())
    assert emptied(ready, capfd) == f"making {ready.venv} again: its Python or its pip does not start\n"


def test_what_makes_an_environment_unusable_is_named(ready: Project) -> None:
    job = ready.job("train")
    state, expected = begun(ready), job.target()

    def problem(state: venv_state.State | None, expected: venv_state.State) -> str | None:
        return venv_install.examine(job, state, expected)[1]

    assert problem(state, expected) is None
    assert problem(None, expected) is None
    assert "it has Python" in str(problem(state, replace(expected, python="3.99")))
    assert "it has Python" in str(problem(state, replace(expected, base="/elsewhere")))
    assert "it was made as /elsewhere" in str(problem(replace(state, folder="/elsewhere"), expected))
    assert "was stopped" in str(problem(replace(state, step="venv"), expected))
    (ready.site_packages / "pip/py.typed").unlink()
    (ready.site_packages / "pip/py.typed").write_text("longer than it was")
    assert problem(state, expected) == "its pip is incomplete"


def test_a_removal_that_was_stopped_is_resumed(ready: Project, capfd: pytest.CaptureFixture[str]) -> None:
    state = begun(ready)
    venv_state.write_state(ready.venv, replace(state, step="venv"))
    (ready.venv / "pyvenv.cfg").unlink()
    assert "the run that made it was stopped" in emptied(ready, capfd)


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

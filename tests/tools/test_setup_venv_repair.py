"""tools/environment/setup_venv.py finishes a run that was stopped, and makes an unusable environment again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import zipfile
from dataclasses import replace
from functools import cache

import pytest

import venv_install
import venv_repair
import venv_state
from tests.support.venv_projects import (
    MANY,
    Project,
    held,
    stop,
    wait_for,
)


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

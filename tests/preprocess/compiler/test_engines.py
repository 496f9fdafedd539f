"""Engines: the same results from any number of workers, never a hang, and nobody left behind.

Tasks run in spawned processes. Their functions are in a module of their own, which takes 0.4 s to import, and not 1.1.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from preprocess.blend.resolve import engine_problems
from preprocess.compiler.engines import ENGINES, keeping_workers, process_engine
from preprocess.compiler.ray_engine import ray_engine
from preprocess.compiler.task_errors import failure_text
from preprocess.errors import DataError
from tests.support import engine_tasks, extensions
from tests.support.engine_tasks import (
    bare_os_error,
    big,
    disk_full,
    end_of_file,
    full_in_rust,
    full_without_name,
    kill_yourself_at_two,
    leave_at_two,
    mistake,
    press_ctrl_c,
    process_of,
    refuse,
    square,
    unpicklable,
    wait_for_ever_from_one_on,
)
from tests.support.paths import ROOT
from tests.support.ray_clusters import ray_variables
from tests.support.small_blends import build, files_of, image_blend
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_hang")


def workers_of(parent: int) -> set[int]:
    """Spawned processes of a parent that are not dead, from /proc."""
    actual = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, ppid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(ppid) == parent and state != "Z" and b"spawn_main" in (folder / "cmdline").read_bytes():
                actual.add(int(folder.name))
    return actual


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_nobody_left() -> None:
    assert multiprocessing.active_children() == []
    if sys.platform == "linux":
        assert workers_of(os.getpid()) == set()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_results_are_the_same_for_any_number_of_workers(workers: int) -> None:
    got = list(process_engine(square, range(9), workers))
    assert sorted(got) == [(index, (index, index * index)) for index in range(9)]
    assert_nobody_left()


def test_an_engine_reports_how_many_tasks_run_and_wait() -> None:
    seen = []
    list(process_engine(square, range(5), 2, lambda running, waiting, failed: seen.append((running, waiting, failed))))
    assert seen[0] == (2, 3, 0)
    assert seen[-1][1:] == (0, 0)
    assert {running for running, _, _ in seen} <= {1, 2}


def test_no_tasks_need_no_workers() -> None:
    assert list(process_engine(square, [], 4)) == []


def test_tasks_run_in_as_many_processes_as_workers_and_never_in_more_than_tasks() -> None:
    processes = dict(process_engine(process_of, "ab", 8))
    assert len(set(processes.values())) == 2
    assert os.getpid() not in processes.values()


def test_large_tasks_and_results_pass() -> None:
    assert dict(process_engine(big, [5_000_000, 0], 1)) == {0: bytes(5_000_000), 1: b""}
    assert dict(process_engine(len, [bytes(5_000_000)], 1)) == {0: 5_000_000}


def test_a_killed_worker_ends_the_run() -> None:
    with pytest.raises(DataError, match=r"worker process died in task 2 \(the system killed it.*use fewer --workers"):
        list(process_engine(kill_yourself_at_two, range(50), 2))
    assert_nobody_left()


def test_a_worker_killed_from_outside_while_others_work_ends_the_run() -> None:
    run = process_engine(wait_for_ever_from_one_on, [0, 1, 2], 2)
    process = next(run)[1]
    os.kill(process, signal.SIGKILL)
    with pytest.raises(DataError, match="the system killed it"):
        next(run)
    assert_nobody_left()


def test_a_worker_that_leaves_ends_the_run_with_its_exit_code() -> None:
    with pytest.raises(DataError, match=r"died in task 2 \(exit code 3\)"):
        list(process_engine(leave_at_two, range(5), 1))
    assert_nobody_left()


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (refuse, "file.json: cannot be used"),
        (disk_full, "file.json: No space left on device; free some space, and run it again"),
        (full_without_name, "writing: No space left on device; free some space, and run it again"),
        (full_in_rust, "reading or writing: No space left on device (os error 28); free some space and run it again"),
        (bare_os_error, "reading or writing: file.json is truncated"),
    ],
)
def test_an_error_that_a_user_can_fix_ends_the_run_with_its_text(function: Callable[[str], None], text: str) -> None:
    with pytest.raises(DataError) as caught:
        list(process_engine(function, ["file.json"] * 4, 2))
    assert str(caught.value) == text
    assert_nobody_left()


@pytest.mark.parametrize("function", [mistake, end_of_file, unpicklable])
def test_an_unexpected_error_ends_the_run_and_shows_its_traceback(
    function: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=r"died in task 0 \(exit code 1\).*if that is a traceback, please report it"):
        list(process_engine(function, ["file.json"] * 4, 1))
    assert "Traceback" in capfd.readouterr().err
    assert_nobody_left()


def test_closing_early_kills_the_workers() -> None:
    run = process_engine(wait_for_ever_from_one_on, [0, 1, 2, 3], 2)
    next(run)
    run.close()  # type: ignore[attr-defined]
    assert_nobody_left()


def test_workers_are_kept_for_the_next_call_until_the_context_ends() -> None:
    with keeping_workers(process_engine) as engine:
        first = set(dict(engine(process_of, range(9), 2)).values())
        assert list(engine(square, [7], 2)) == [(0, (7, 49))]
        assert set(dict(engine(process_of, range(9), 2)).values()) <= first
        assert workers_of(os.getpid()) == first
    assert_nobody_left()


def test_a_call_that_fails_or_is_left_kills_the_workers_and_the_next_starts_others() -> None:
    with keeping_workers(process_engine) as engine:
        with pytest.raises(DataError, match=r"file.json: cannot be used"):
            list(engine(refuse, ["file.json"], 1))
        assert_nobody_left()
        waiting = engine(wait_for_ever_from_one_on, [0, 1, 2], 2)
        next(waiting)
        waiting.close()  # type: ignore[attr-defined]
        assert_nobody_left()
        assert sorted(engine(square, range(3), 2)) == [(number, (number, number**2)) for number in range(3)]
    assert_nobody_left()


def test_another_engine_is_used_as_it_is() -> None:
    with keeping_workers(ray_engine) as engine:
        assert engine is ray_engine


def test_an_error_in_the_consumer_kills_the_workers() -> None:
    def consume() -> None:
        for _ in process_engine(wait_for_ever_from_one_on, [0, 1, 2], 2):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    assert_nobody_left()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a child that its parent died")
def test_workers_die_with_a_killed_parent() -> None:
    program = (
        "import signal; from preprocess.compiler.engines import process_engine\n"
        "list(process_engine(signal.sigwait, [[signal.SIGUSR1]] * 2, 2))"
    )
    root = ROOT
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=root)
    try:
        wait_until(lambda: len(workers_of(parent.pid)) == 2)
        workers = workers_of(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not any(map(is_running, workers)))


def test_ctrl_c_is_left_to_the_parent() -> None:
    answers = dict(process_engine(press_ctrl_c, range(2), 1))
    assert answers[0] == answers[1] != os.getpid()
    assert_nobody_left()


def test_ray_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (problem,) = engine_problems("ray")
    assert "pip install 'dsvl[ray]', or set engine: process" in problem
    assert engine_problems("process") == []


def test_an_address_of_rays_client_is_refused_before_work_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    (problem,) = engine_problems("ray")
    assert problem.startswith(
        "RAY_ADDRESS=ray://10.0.0.1:10001: builds do not run through Ray's client; run the command"
    )
    assert engine_problems("process") == []


def test_engines_are_named_as_in_the_config() -> None:
    assert dict(ENGINES) == {"process": process_engine, "ray": ray_engine}


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    """Ray's own workers, on this machine only; they get the tasks by value."""
    ray = pytest.importorskip("ray")
    with ray_variables(extensions.EXAMPLE):
        ray.cloudpickle.register_pickle_by_value(engine_tasks)
        yield
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.usefixtures("_ray")
def test_ray_gives_the_results_and_the_errors_of_the_process_engine() -> None:
    assert sorted(ray_engine(square, range(20), 2)) == sorted(process_engine(square, range(20), 2))
    for function in (refuse, disk_full):
        texts = []
        for engine in (ray_engine, process_engine):
            with pytest.raises(DataError) as caught:
                list(engine(function, ["file.json"] * 9, 1))
            texts.append(str(caught.value))
        assert texts[0] == texts[1]
    with pytest.raises(DataError, match=r"(?s)task 0 failed in Ray.*KeyError"):
        list(ray_engine(mistake, ["file.json"], 1))
    causes: list[str] = []

    def forgives(task: object, cause: str) -> bool:
        causes.append(cause)
        return False

    with pytest.raises(DataError, match="task 0 failed in Ray"):
        list(ray_engine(leave_at_two, [2], 1, forgives=forgives))
    assert set(causes) == {"WorkerCrashedError"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.usefixtures("_ray")
def test_a_ray_cluster_gives_the_same_bytes_as_worker_processes(tmp_path: Path) -> None:
    blend = image_blend(tmp_path)
    build(blend, out=tmp_path / "processes")
    build(blend, out=tmp_path / "ray", settings=["engine=ray"], workers=2)
    assert files_of(tmp_path / "processes") == files_of(tmp_path / "ray")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.usefixtures("_ray", "example_package")
def test_a_ray_cluster_reads_with_an_adapter_of_another_package(tmp_path: Path) -> None:
    blend = extensions.EXAMPLE / "blend.yaml"
    build(blend, out=tmp_path / "processes")
    build(blend, out=tmp_path / "ray", settings=["engine=ray"], workers=1)
    assert files_of(tmp_path / "processes") == files_of(tmp_path / "ray")


def test_an_error_about_a_url_keeps_its_own_next_step_alone() -> None:
    changed = OSError(errno.EIO, "was written again; run the same command again", "s3://bucket/1.jpg")
    assert failure_text(changed) == "s3://bucket/1.jpg: was written again; run the same command again"
    assert failure_text(OSError(errno.EIO, "broken", "/data/1.jpg")).endswith("broken; run it again, or fix the folder")

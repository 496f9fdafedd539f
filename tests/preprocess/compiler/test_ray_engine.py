"""Ray clusters of several nodes: the bytes of worker processes, nodes that cannot work, and nodes that are lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from preprocess.compiler import build as build_module
from preprocess.compiler import ingest_stage
from preprocess.compiler.build import build_and_publish
from preprocess.compiler.cluster_nodes import node_needs
from preprocess.compiler.ray_engine import TRIES, RayEngine
from preprocess.errors import DataError
from tests.support.commands import dsvl_prep
from tests.support.deadly_images import KILLS, run_fragile_task, with_mark
from tests.support.deadly_records import DEADLY, run_fragile_reading
from tests.support.engine_tasks import disk_full, end_worker, look_around, square, wait_for_a_file
from tests.support.paths import ROOT
from tests.support.ray_clusters import add_node, blend_of_every_store, blind_node, ray_cluster
from tests.support.remote_builds import files_at
from tests.support.small_blends import build, chat_blend, chat_record, files_of, image_blend, jpeg
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_hang"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The cache folders of the cluster's nodes."""
    return [tmp_path_factory.mktemp(f"node-{number}") for number in range(2)]


@pytest.fixture(scope="module")
def cluster(bucket: str, caches: list[Path]) -> Iterator[Any]:
    """Two nodes of one CPU that see the S3 server; this program is connected to them."""
    with ray_cluster(caches) as cluster:
        yield cluster


def processes(folder: Path) -> set[int]:
    """The processes of `wait_for_a_file` that ever began a task in the folder."""
    return {int(path.suffixes[-2][1:]) for path in folder.glob("*.pid")}


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nodes_that_share_nothing_build_to_a_url_what_one_machine_builds(
    bucket: str, cluster: Any, caches: list[Path], tmp_path: Path
) -> None:
    blend = blend_of_every_store(tmp_path, f"{bucket}/{tmp_path.name}-data")
    url = f"{bucket}/{tmp_path.name}"
    work = tmp_path / "work"
    build_and_publish(blend, out=url, work=work, settings=["engine=ray"])
    build(blend, out=tmp_path / "local")
    assert files_at(url) == files_of(tmp_path / "local")
    assert files_of(work) == {}
    assert [path for cache in caches for path in cache.rglob("*") if path.is_file()] == []
    again, published = build_and_publish(blend, out=url, work=work, settings=["engine=ray"])
    assert again.built_tasks == 0
    assert published is not None
    assert published.uploaded_files == 0


def test_tasks_find_the_files_that_they_name_in_a_folder_of_their_node_and_their_output_comes_back(
    cluster: Any, caches: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "work/.cache/spool"
    (folder / "part").mkdir(parents=True)
    for name in ("a.txt", "part/b.txt"):
        (folder / name).write_text(name, encoding="utf-8")
    (tmp_path / "work/unnamed.txt").touch()
    engine = RayEngine(carrier_of=(tmp_path / "work", tmp_path / "work/.cache"))
    with engine:
        results = dict(engine(look_around, [folder] * 6, 1)).values()
        for where, below in results:
            assert any(Path(where).is_relative_to(cache) for cache in caches)
            assert below == ["a.txt", "part/b.txt"]
    assert (folder / "out/result.txt").read_text(encoding="utf-8") == "made on a node"
    assert [path for cache in caches for path in cache.rglob("*") if path.is_file()] == []


def test_tasks_in_flight_follow_the_cpus_of_the_cluster_while_nodes_come(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.compiler.ray_engine.COUNT_EVERY_S", 0.2)
    go = tmp_path / "go"
    most = []
    node = None

    def watch(running: int, waiting: int, failed: int) -> None:
        nonlocal node
        most.append((running, waiting))
        if len(processes(tmp_path)) == 2 and node is None:
            node = add_node(cluster, tmp_path / "cache")
        if running == 3 == len(processes(tmp_path)):
            go.touch()

    try:
        run = RayEngine()(wait_for_a_file, [go] * 9, 1, watch)
        assert len(list(run)) == 9
        assert {(2, 7), (3, 6)} <= set(most)
    finally:
        if node is not None:
            cluster.remove_node(node)


def test_a_number_of_workers_is_a_limit(cluster: Any, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.touch()
    seen = []
    assert len(list(RayEngine(1)(wait_for_a_file, [go] * 5, 1, lambda *counts: seen.append(counts)))) == 5
    assert {running for running, _, _ in seen} == {1}


def test_the_tasks_of_a_lost_node_begin_again_on_others(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.compiler.ray_engine.COUNT_EVERY_S", 0.2)
    node = add_node(cluster, tmp_path / "cache", cpus=2)
    go, seen = tmp_path / "go", set[int]()
    lost: list[Any] = []

    def watch(running: int, waiting: int, failed: int) -> None:
        seen.add(failed)
        if len(processes(tmp_path)) >= 4 and not lost:
            lost.append(node)
            cluster.remove_node(node, allow_graceful=False)
        if failed == 2:
            go.touch()

    results = dict(RayEngine()(wait_for_a_file, [go] * 6, 1, watch))
    assert sorted(results) == list(range(6))
    assert max(seen) == 2


def test_a_record_at_which_workers_of_nodes_die_twice_is_a_reject(
    bucket: str, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "run_task", run_fragile_task)
    blend = image_blend(tmp_path, 6, limits={"max_reject_share": 0.5})
    (tmp_path / "mine/5.jpg").write_bytes(with_mark(jpeg(5), KILLS))
    work = tmp_path / "work"
    build_and_publish(blend, out=f"{bucket}/{tmp_path.name}", work=work, settings=["engine=ray"])
    (reject,) = map(json.loads, files_at(f"{bucket}/{tmp_path.name}")["rejects.jsonl"].splitlines())
    assert (reject["reason"], reject["record"]) == ("worker_died", "r5")
    assert "died 2 times while it worked on this record" in reject["detail"]


def test_a_record_at_which_workers_of_nodes_die_while_they_read_is_a_reject(
    bucket: str, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_stage, "run_reading", run_fragile_reading)
    lines = [chat_record(number) for number in range(6)]
    lines[3]["note"] = DEADLY
    blend = chat_blend(tmp_path, lines, limits={"max_reject_share": 0.5})
    work = tmp_path / "work"
    build_and_publish(blend, out=f"{bucket}/{tmp_path.name}", work=work, settings=["engine=ray"])
    (reject,) = map(json.loads, files_at(f"{bucket}/{tmp_path.name}")["rejects.jsonl"].splitlines())
    assert (reject["reason"], reject["file"], reject["record"]) == ("worker_died", "chat.jsonl", "3")
    assert "died 2 times while it worked on this record" in reject["detail"]


def test_an_error_of_a_disk_names_its_node(cluster: Any) -> None:
    with pytest.raises(DataError, match=r"^node \S+ \(\S+\): file.json: No space left on device; free some space"):
        list(RayEngine(needs=node_needs([], None))(disk_full, ["file.json"], 1))


def test_a_task_that_always_ends_its_worker_ends_the_run(cluster: Any) -> None:
    with pytest.raises(DataError, match=f"task 0 failed in Ray {TRIES} times, the last time: .*worker died") as caught:
        list(RayEngine()(end_worker, [0], 1))
    assert "\n" not in str(caught.value)


def test_what_runs_is_cancelled_on_every_node_when_the_caller_stops(cluster: Any, tmp_path: Path) -> None:
    never = tmp_path / "never"
    ready = tmp_path / "ready"
    ready.touch()
    run = RayEngine()(wait_for_a_file, [ready, never, never, never], 1)
    next(run)
    wait_until(lambda: len(list(tmp_path.glob("never.*.pid"))) == 2)
    run.close()  # type: ignore[attr-defined]
    started = {int(path.suffixes[-2][1:]) for path in tmp_path.glob("never.*.pid")}
    wait_until(lambda: not any(map(is_running, started)))
    assert list(RayEngine()(square, [3], 1)) == [(0, (3, 9))]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_runs_on_any_node_after_a_signal(cluster: Any, tmp_path: Path, number: signal.Signals) -> None:
    program = (
        "import signal, sys; from pathlib import Path; from preprocess.compiler.ray_engine import RayEngine\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from tests.support.engine_tasks import wait_for_a_file\n"
        "list(RayEngine()(wait_for_a_file, [Path(sys.argv[1])] * 9, 1))"
    )
    driver = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "never")],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: len(processes(tmp_path)) == 2)
        driver.send_signal(number)
        driver.wait()
        wait_until(lambda: not any(map(is_running, processes(tmp_path))))
        assert len(processes(tmp_path)) == 2
    finally:
        driver.kill()
        driver.wait()


def test_a_node_that_cannot_see_the_data_or_the_build_folder_is_named_with_the_path(
    cluster: Any, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "out").mkdir()
    blend = image_blend(tmp_path / "data", 4)
    with blind_node(cluster, tmp_path / "data", "blind-1"):
        done = dsvl_prep("build", "--blend", blend, "--out", f"{bucket}/{tmp_path.name}", "--set", "engine=ray")
        assert done.returncode == 1
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "(blind-1): cannot see " in line
        assert f"{tmp_path}/data/mine" in line
        assert "mount it there at the same path, or put the data on object storage" in line
    with blind_node(cluster, tmp_path / "out", "blind-2"):
        done = dsvl_prep("build", "--blend", blend, "--out", tmp_path / "out/build", "--set", "engine=ray")
        assert done.returncode == 1
        assert (
            f"(blind-2): cannot see the build folder {tmp_path}/out/build; use a folder that all nodes" in done.stderr
        )
        done = dsvl_prep(
            *("build", "--blend", blend, "--out", f"{bucket}/{tmp_path.name}", "--set", "engine=ray"),
            *("--work", tmp_path / "out/work"),
        )
        assert done.returncode == 0, done.stderr


def test_a_node_with_another_version_is_named(cluster: Any, tmp_path: Path) -> None:
    needs = node_needs([], None)
    other = replace(needs, versions=(*needs.versions[:-1], ("tokenizers", "0.1")))
    with pytest.raises(DataError, match=r"node \S+ \(\S+\): has tokenizers .*, the machine of the build has 0\.1"):
        list(RayEngine(needs=other)(square, [1], 1))

"""Ray clusters of several nodes on this machine, each with a cache folder of its own."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.image_archives import as_folder, as_mimicit_parquet, as_tar
from tests.support.paths import ROOT
from tests.support.remote_builds import write_at
from tests.support.small_blends import chat_record, jpeg, write_blend, write_chat
from tests.support.waiting import LIMIT_S, wait_until

_LIMITS = (
    "gcs_rpc_server_connect_timeout_s",
    "gcs_rpc_server_reconnect_timeout_s",
    "gcs_server_port_wait_time_s",
    "gcs_server_request_timeout_seconds",
    "raylet_start_wait_time_s",
    "worker_register_timeout_seconds",
)
"""Of Ray's own start, which are 5 to 60 seconds"""


@contextlib.contextmanager
def ray_variables(*paths: Path, patient: bool = True) -> Iterator[None]:
    """The environment for Ray's processes. paths: folders of modules that tasks import.

    patient: a busy machine may take long; with it, a cluster that refuses is asked for as long.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # it kills tasks where other programs fill the memory
        for limit in _LIMITS if patient else ():
            patch.setenv(f"RAY_{limit}", str(LIMIT_S))
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, [ROOT, *paths, *sys.path[:1]])))
        yield


@contextlib.contextmanager
def ray_cluster(caches: Sequence[Path]) -> Iterator[Any]:
    """A cluster with a node of one CPU for each cache folder, and this program connected to it."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with ray_variables(), pytest.MonkeyPatch.context() as patch:
        cluster = Cluster()
        try:
            for cache in caches:
                add_node(cluster, cache)
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def add_node(cluster: Any, cache: Path, cpus: int = 1) -> Any:
    return cluster.add_node(
        num_cpus=cpus, include_dashboard=False, env_vars={"DSVL_CACHE": str(cache)}, object_store_memory=100 << 20
    )


def blend_of_every_store(folder: Path, url: str) -> Path:
    """Images in a folder, a tar, a Parquet file, inside records and at a URL; copies, and missing ones."""
    images = {f"{number}.jpg": jpeg(number) for number in range(12)}
    names = [*images, "no.jpg"]
    stores = {"a": as_folder, "b": as_tar, "c": as_mimicit_parquet}
    for name, write in stores.items():
        write_chat(folder / name, [chat_record(number, images=[image]) for number, image in enumerate(names)])
        write(folder / name / "images", images)
    inside = [f"data:image/jpeg;base64,{base64.b64encode(jpeg(number)).decode()}" for number in range(6, 18)]
    write_chat(folder / "d", [chat_record(number, images=[image]) for number, image in enumerate(inside)])
    for path, data in [(path.relative_to(folder / "a"), path.read_bytes()) for path in (folder / "a").rglob("*.*")]:
        write_at(f"{url}/{path.as_posix()}", data)
    datasets: list[dict[str, Any]] = [
        {"name": name, "adapter": "chat", "root": name, **({"images": "images"} if name in stores else {})}
        for name in "abcd"
    ]
    datasets.append({"name": "e", "adapter": "chat", "root": url, "images": "images"})
    return write_blend(
        folder / "blend.yaml",
        datasets,
        shard={"max_samples": 3},
        split={"eval": 0.2},
        dedupe="near",
        limits={"max_reject_share": 1.0},
    )


@contextlib.contextmanager
def blind_node(cluster: Any, hidden: Path, hostname: str) -> Iterator[None]:
    """A node of its own host name that sees nothing below a folder."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-mu", "true"], check=False).returncode:
        pytest.skip("this user cannot hide folders from a process")
    node = start_blind_node(cluster, hidden, hostname)
    try:
        while not comes(hostname):
            end(node)
            node = start_blind_node(cluster, hidden, hostname)
        yield
    finally:
        end(node)
        wait_until(lambda: hostname not in hostnames())


def start_blind_node(cluster: Any, hidden: Path, hostname: str) -> subprocess.Popen[bytes]:
    ray = str(Path(sys.executable).parent / "ray")
    start = f"hostname {hostname}; mount -t tmpfs none '{hidden}'; exec '{ray}' start --block --num-cpus 1 "
    return subprocess.Popen(
        ["unshare", "-mu", "--propagation", "private", "sh", "-c", f"{start} --address {cluster.address}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def comes(hostname: str) -> bool:
    """Whether a node joins soon. Its raylet ends if a part of it starts slowly, and `ray start` waits on."""
    try:
        return wait_until(lambda: hostname in hostnames(), limit_s=60)
    except AssertionError:
        return False


def end(node: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGTERM)
    node.wait()


def hostnames() -> set[str]:
    """Of the nodes that are alive. Their number may fall meanwhile: the end of one that was killed is noticed late."""
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="error")
    return {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}

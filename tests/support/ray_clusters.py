"""Ray clusters of several nodes on this machine, each with a cache folder of its own."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.waiting import LIMIT_S

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
def ray_variables(*paths: Path) -> Iterator[None]:
    """The environment for Ray's processes. paths: folders of modules that tasks import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # it kills tasks where other programs fill the memory
        for limit in _LIMITS:
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

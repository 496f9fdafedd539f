"""The cluster files of docs/cluster.md, as Ray itself reads them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

_YAML = re.compile(r"```yaml\n(.*?)```", re.DOTALL)


def documented(key: str) -> dict[str, Any]:
    """The file of the page that has this key."""
    files = [yaml.safe_load(text) for text in _YAML.findall((ROOT / "docs/cluster.md").read_text(encoding="utf-8"))]
    (file,) = (file for file in files if key in file)
    return dict(file)


def test_ray_accepts_the_file_for_cloud_machines() -> None:
    pytest.importorskip("ray")
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = documented("cluster_name")
    worker = config["available_node_types"]["worker"]
    worker["resources"] = {"CPU": 16}  # which Ray asks of the cloud
    validate_config(prepare_config(config))
    machines = [kind["node_config"] for kind in config["available_node_types"].values()]
    assert all("ImageId" in machine for machine in machines), "Ray's own image has too old a Python"
    assert len({machine["IamInstanceProfile"]["Name"] for machine in machines}) == 2, "only the head starts machines"


def test_rays_autoscaler_reads_the_groups_of_the_kuberay_job() -> None:
    pytest.importorskip("ray")
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = documented("apiVersion")["spec"]["rayClusterSpec"]
    config = _derive_autoscaling_config_from_ray_cr({"metadata": {"namespace": "a", "name": "b"}, "spec": cluster})
    kinds = config["available_node_types"]
    assert kinds[config["head_node_type"]]["resources"]["CPU"] == 0, "no task runs on the head"
    assert (kinds["workers"]["resources"]["CPU"], kinds["workers"]["max_workers"]) == (16, 20)

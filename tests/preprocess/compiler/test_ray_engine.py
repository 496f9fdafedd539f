"""Ray clusters of two nodes: the bytes of worker processes, nodes that cannot do the work, and nodes that are lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from preprocess.compiler.build import build_and_publish
from tests.support.ray_clusters import ray_cluster
from tests.support.remote_builds import files_at
from tests.support.small_blends import build, files_of, image_blend

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_hang"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


@pytest.fixture(scope="module")
def nodes(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """The cache folders of the nodes of a cluster, which see the S3 server."""
    caches = [tmp_path_factory.mktemp(f"node-{number}") for number in range(2)]
    with ray_cluster(caches):
        yield caches


def test_nodes_that_share_nothing_build_to_a_url_what_one_machine_builds(
    bucket: str, nodes: list[Path], tmp_path: Path
) -> None:
    blend = image_blend(tmp_path, 24, shard={"max_samples": 2}, split={"eval": 0.2}, dedupe="near")
    url = f"{bucket}/{tmp_path.name}"
    work = tmp_path / "work"
    report, published = build_and_publish(blend, out=url, work=work, settings=["engine=ray"])
    build(blend, out=tmp_path / "local")
    assert files_at(url) == files_of(tmp_path / "local")
    assert files_of(work) == {}
    assert [path for cache in nodes for path in cache.rglob("*") if path.is_file()] == []
    again, published = build_and_publish(blend, out=url, work=work, settings=["engine=ray"])
    assert (again.built_tasks, again.reused_tasks) == (0, report.built_tasks)
    assert published is not None
    assert published.uploaded_files == 0

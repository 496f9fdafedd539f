"""Builds with an adapter of another package: the same bytes from any worker, and nothing reused from other code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import shards
from preprocess.adapters.lookup import adapter_origin, find_adapter
from preprocess.compiler.ingest import finished, ingest_task, run_ingest
from preprocess.compiler.report import BuildReport
from shards.errors import ShardError
from shards.format.manifest import ExtensionFacts
from tests.support import extensions
from tests.support.adapting import request_of
from tests.support.extensions import ADAPTER, forget, install, write_module
from tests.support.manifests import edit_manifest, manifest_document
from tests.support.small_blends import build, chat_record, files_of, write_blend, write_chat

NAME = "lines.reader:ADAPTER"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of sys.path with a package that has an adapter of text files."""
    (tmp_path / "path").mkdir()
    write_module(tmp_path / "path", "lines.reader", ADAPTER)
    yield from extensions.on_path(monkeypatch, tmp_path / "path")


def blend_of(folder: Path, adapter: str = NAME) -> Path:
    """Two datasets that the extension reads, two shards each, and one that dsvl reads."""
    for name in ("first", "second"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "a.txt").write_text("".join(f"Line {number} of {name}.\n" for number in range(6)))
    write_chat(folder / "mine", [chat_record(0)])
    datasets = [{"name": name, "adapter": adapter, "root": name} for name in ("first", "second")]
    datasets.append({"name": "mine", "adapter": "chat", "root": "mine"})
    return write_blend(folder / "blend.yaml", datasets, shard={"max_samples": 3})


def counts(report: BuildReport) -> tuple[int, int]:
    return report.built_tasks, report.reused_tasks


@pytest.mark.usefixtures("folder")
def test_worker_processes_give_the_same_bytes_and_a_manifest_with_the_code(
    tmp_path: Path,
) -> None:
    blend = blend_of(tmp_path)
    assert counts(build(blend, workers=2)) == (3 + 5, 0)
    build(blend, out=tmp_path / "again")
    assert files_of(tmp_path / "build") == files_of(tmp_path / "again")
    opened = shards.open(tmp_path / "build")
    origin = adapter_origin(NAME)
    assert origin is not None
    facts = ExtensionFacts(name=NAME, distribution=None, version=None, sha256=origin.sha256)
    assert opened.manifest.datasets["first"].extension == facts
    assert opened.manifest.facts().datasets["second"].extension == facts
    assert "extension" not in manifest_document(tmp_path / "build")["datasets"]["mine"]


def test_a_build_is_opened_and_verified_where_the_adapter_is_not_installed(folder: Path, tmp_path: Path) -> None:
    build(blend_of(tmp_path))
    forget("lines")
    folder.rename(tmp_path / "elsewhere")
    opened = shards.open(tmp_path / "build")
    assert shards.verify(opened).problems == []
    assert len(opened) == 13
    edit_manifest(tmp_path / "build", lambda tree: tree["datasets"]["first"]["extension"].update(sha256=3))
    with pytest.raises(ShardError, match=r"datasets\.first\.extension\.sha256: got 3; expected text"):
        shards.open(tmp_path / "build")


def test_other_code_reads_again_and_only_shards_of_other_conversations_are_built_again(
    folder: Path, tmp_path: Path
) -> None:
    blend = blend_of(tmp_path)
    build(blend)
    assert counts(build(blend)) == (0, 3 + 5)

    def change(name: str, text: str) -> BuildReport:
        path = folder / "lines" / f"{name}.py"
        path.write_text(text)
        forget("lines")
        return build(blend)

    before = manifest_document(tmp_path / "build")["datasets"]["first"]["extension"]["sha256"]
    assert counts(change("helper", "# unused")) == (2, 1 + 5)
    assert manifest_document(tmp_path / "build")["datasets"]["first"]["extension"]["sha256"] != before
    assert counts(change("reader", ADAPTER.replace("Go on.", "Continue."))) == (2 + 4, 1 + 1)
    assert counts(build(blend)) == (0, 3 + 5)


def test_another_version_of_the_distribution_reads_again(folder: Path, tmp_path: Path) -> None:
    entry_points = {"dsvl.adapters/lines": NAME}
    info = install(folder, "my-lines", "1.0", entry_points=entry_points, files={"lines/reader.py": ADAPTER})
    blend = blend_of(tmp_path, "lines")
    build(blend)
    extension = manifest_document(tmp_path / "build")["datasets"]["first"]["extension"]
    assert (extension["name"], extension["distribution"], extension["version"]) == ("lines", "my-lines", "1.0")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lines\nVersion: 1.1\n")
    assert counts(build(blend)) == (2, 1 + 5)
    extension = manifest_document(tmp_path / "build")["datasets"]["first"]["extension"]
    assert extension["version"] == "1.1"


def test_a_worker_with_other_code_than_the_build_began_with_ends_it(folder: Path, tmp_path: Path) -> None:
    blend_of(tmp_path)
    origin = adapter_origin(NAME)
    assert origin is not None
    request = request_of(find_adapter(NAME), tmp_path / "first")
    task = ingest_task("first", NAME, request, tmp_path / "cache", None, replace(origin, sha256="1" * 64))
    assert run_ingest(task).error == (
        f"dataset first: adapter {NAME}: this worker has code of no distribution (sha256 {origin.sha256[:12]}), the "
        "build began with code of no distribution (sha256 111111111111); install the same version on every node, and "
        "do not edit it during a build"
    )
    assert finished(task) is None
    assert run_ingest(ingest_task("first", NAME, request, tmp_path / "cache", None, origin)).error is None

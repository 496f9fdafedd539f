"""Datasets behind URLs, and the requests that a build makes for them."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from preprocess.compiler.build import run_build
from preprocess.compiler.report import BuildReport
from preprocess.containers import remote_requests
from tests.support.image_archives import KINDS
from tests.support.remote_builds import write_at
from tests.support.small_blends import chat_record, files_of, jpeg, write_blend, write_chat


def dataset(folder: Path, kind: str, count: int = 6) -> Path:
    """Records, and their images in a store of a kind."""
    names = [f"photos/{number} é.jpg" for number in range(count)]
    write_chat(folder, [chat_record(number, images=[name]) for number, name in enumerate(names)])
    KINDS[kind](folder / kind, {name: jpeg(number) for number, name in enumerate(names)})
    return folder


def put(folder: Path, url: str) -> str:
    """Bring all files of a folder to a URL, which is returned."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            write_at(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return url


def blend_of(folder: Path, root: str, name: str = "blend.yaml", **dataset: Any) -> Path:
    """A blend of one dataset `mine` below a folder or a URL."""
    settings = dataset.pop("settings", {})
    return write_blend(folder / name, [{"name": "mine", "adapter": "chat", "root": root, **dataset}], **settings)


def build_of(folder: Path, root: str, out: str, **dataset: Any) -> tuple[BuildReport, dict[str, bytes]]:
    """Build it; the report, and the files of the build, with the manifest without the place of the data."""
    report = run_build(blend_of(folder, root, **dataset), out=folder / out)
    return report, without_root(files_of(folder / out))


def without_root(files: dict[str, bytes]) -> dict[str, bytes]:
    manifest = json.loads(files["manifest.json"])
    del manifest["config"]["datasets"][0]["root"]
    manifest.pop("hash", None)
    return {**files, "manifest.json": json.dumps(manifest, sort_keys=True).encode()}


class Requests:
    """What was asked of URLs. names: of the requests. bytes: that came."""

    def __init__(self) -> None:
        self.names: Counter[str] = Counter()
        self.bytes = 0


@contextlib.contextmanager
def counted() -> Iterator[Requests]:
    """Counts the requests of this process for inputs."""
    requests = Requests()
    ask = remote_requests._ask

    def counting(url: str, action: Any) -> Any:
        name = getattr(action, "func", action).__name__.strip("_")
        result = ask(url, action)
        pieces = result if isinstance(result, list) else [result] if isinstance(result, bytes) else []
        requests.names[name] += len(pieces) or 1
        requests.bytes += sum(map(len, pieces))
        return result

    with mock.patch.object(remote_requests, "_ask", counting):
        yield requests

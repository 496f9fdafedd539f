"""What every test shares: tokenizers of each kind and Hypothesis' settings.

Nothing heavy is imported here, so that one small test starts at once.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.paths import ROOT

# Worker processes are forked in some tests, and the tokenizers library warns if its threads were started before.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Several tests run at once; threads of torch that outnumber the cores spend their time waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import dst
from tests.support import text_tokenizers
from tests.support.browser import Chromium, running_chromium
from tests.support.waiting import LIMIT_S

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile(
    "dev", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first on every worker, so that none is still at work long after the others.

    pytest-xdist gives each worker an equal part of the list, and workers that are done steal from the ends of others.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    files = [list(tests) for _, tests in itertools.groupby(items, key=lambda item: item.path)]
    slow = [tests for tests in files if any(test.get_closest_marker("slow") for test in tests)]
    rest = [test for tests in files if tests not in slow for test in tests]
    parts = [[test for tests in slow[worker::workers] for test in tests] for worker in range(workers)]
    size = -(-len(items) // workers)
    for part in parts:
        taken = max(0, size - len(part))
        part += rest[:taken]
        del rest[:taken]
    items[:] = [test for part in [*parts, rest] for test in part]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    yield from running_chromium()


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="session", params=sorted(text_tokenizers.KINDS))
def tokenizer(request: pytest.FixtureRequest, tokenizer_folders: Path) -> dst.TextTokenizer:
    """One tokenizer of every kind in turn."""
    return dst.load_tokenizer(text_tokenizers.make(request.param, tokenizer_folders))


@pytest.fixture(scope="session")
def byte_tokenizer() -> dst.TextTokenizer:
    """The repository's own example tokenizer: byte-level BPE, about 2000 tokens."""
    return dst.load_tokenizer(text_tokenizers.BYTE_FOLDER)


@pytest.fixture
def files() -> dict[str, bytes]:
    """The sample photos by name, and one in a folder whose name is not plain."""
    photos = ROOT / "examples/data/coco/train2017"
    images = {path.name: path.read_bytes() for path in sorted(photos.iterdir())}
    return images | {"below/a folder/ümlaut.jpg": next(iter(images.values())) + b"x"}


@pytest.fixture
def no_hang() -> Iterator[None]:
    """What waits for ever fails its test, and not the whole session."""

    def fail(*_: object) -> None:
        raise TimeoutError(f"still running after {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def builds_in_this_process() -> Iterator[None]:
    """Builds start no process."""
    from tests.support.in_process import without_processes

    with without_processes():
        yield


# Remote builds


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an S3 bucket on this machine."""
    from tests.support.s3_server import s3_server

    with s3_server() as url:
        yield url


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of remote files and work folders go below the test's own folder."""
    monkeypatch.setenv("DSVL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small build, to be published."""
    from tests.support import handmade_builds

    return handmade_builds.make(tmp_path / "local").folder


@pytest.fixture
def memory() -> Iterator[str]:
    from tests.support.remote_builds import memory_url

    with memory_url() as url:
        yield url


@pytest.fixture
def flaky() -> Iterator[str]:
    from tests.support.remote_builds import flaky_url

    with flaky_url() as url:
        yield url


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path, memory: str) -> str:
    """S3 or memory, as the test asks."""
    if request.param == "memory":
        return memory
    bucket: str = request.getfixturevalue("bucket")
    return f"{bucket}/{tmp_path.name}/a build"


# Extensions


@pytest.fixture
def module_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of sys.path, for modules that the test writes."""
    from tests.support.extensions import on_path

    yield from on_path(monkeypatch, tmp_path)


@pytest.fixture
def example_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of examples/extensions can be imported."""
    from tests.support.extensions import EXAMPLE, on_path

    yield from on_path(monkeypatch, EXAMPLE)

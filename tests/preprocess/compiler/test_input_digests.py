"""Digests of annotation files: made next to the reading, whole or not at all."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from preprocess.compiler import input_digests as module
from preprocess.compiler.input_digests import input_digests
from preprocess.errors import DataError
from tests.support.adapting import request_for


def test_every_file_has_its_size_and_digest(tmp_path: Path) -> None:
    contents = {"a.jsonl": b"", "b.jsonl": bytes(range(256)) * 9000}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    with input_digests(request_for("chat", tmp_path, annotations=("*.jsonl",))) as digests:
        assert digests.result() == [
            {"file": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in contents.items()
        ]


def test_a_file_that_vanished_is_a_data_error_of_the_reader(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{}")
    request = request_for("chat", tmp_path, annotations=("*.jsonl",))
    (tmp_path / "a.jsonl").unlink()
    with input_digests(request) as digests, pytest.raises(DataError, match=r"a\.jsonl: cannot be read"):
        digests.result()


def test_hashing_a_large_file_ends_when_the_reading_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is one that never ends."""
    pieces = 0
    started = threading.Event()

    class Endless:
        def update(self, piece: memoryview) -> None:
            nonlocal pieces
            pieces += 1
            started.set()

        def hexdigest(self) -> str:
            return ""

    (tmp_path / "a.jsonl").symlink_to("/dev/zero")
    monkeypatch.setattr(module, "stamp", lambda path: (0, 0))
    monkeypatch.setattr(hashlib, "sha256", Endless)

    def fail() -> None:
        with input_digests(request_for("chat", tmp_path, annotations=("*.jsonl",))):
            started.wait(10)
            raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        fail()
    assert pieces > 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("digests")]

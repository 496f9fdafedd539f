"""Digests of files and of the records that list them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
import torch
import xxhash

from tests.support.sealed_records import flip
from trainer.errors import TrainError
from trainer.model_io.digests import CheckedFiles, file_facts, read_sealed, sealed
from trainer.model_io.safetensors_files import check_finite


def test_a_digest_is_the_librarys_own_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000  # more than one piece
    (tmp_path / "file").write_bytes(content)
    facts = file_facts(tmp_path / "file", sha256=True)
    assert (facts.size, facts.xxh3_128) == (len(content), xxhash.xxh3_128_hexdigest(content))
    assert facts.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("indent", [1, 2])
def test_every_flipped_bit_of_a_record_is_noticed(indent: int, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record = {"version": 1, "step": 3, "loss": 1e-7, "name": "ä", "files": {"a": {"size": 1, "xxh3_128": "0" * 32}}}
    path.write_bytes(sealed(record, indent=indent))
    assert read_sealed(path) == record
    intact = path.read_bytes()
    for bit in range(len(intact) * 8):
        flip(path, bit)
        with pytest.raises(ValueError):  # noqa: PT011  # JSON's and Unicode's errors are also of this class
            read_sealed(path)
        path.write_bytes(intact)


@pytest.mark.parametrize("value", ["", None, 3, "0" * 32, {"a": 1}])
def test_a_record_with_an_edited_digest_is_damaged(value: object, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    tree = json.loads(sealed({"version": 1}, indent=1))
    path.write_text(json.dumps({**tree, "digest": value}, indent=1) + "\n")
    with pytest.raises(ValueError, match="damaged or edited: its xxh3_128 is"):
        read_sealed(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_nan_and_infinity_are_noticed_at_any_place_of_a_tensor(dtype: torch.dtype) -> None:
    tensor = torch.zeros(67, 3, dtype=dtype)
    check_finite("w", tensor)
    check_finite("w", tensor[:0])
    for index in range(tensor.numel()):
        for value in (torch.nan, torch.inf, -torch.inf):
            damaged = tensor.clone()
            damaged.view(-1)[index] = value
            with pytest.raises(TrainError, match="w: has NaN or infinite elements in"):
                check_finite("w", damaged)


def test_files_that_are_checked_ahead_are_checked_as_others_and_one_at_a_time(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode() * 1000)
    facts = {name: file_facts(tmp_path / name) for name in names}
    files = CheckedFiles(tmp_path, facts, has_digests=True, next_step="copy it again")
    flip(tmp_path / "b", 77)
    files.check("d")
    files.check_ahead(names)
    assert [*files._begun] == ["a"]
    files.check("c")  # in another order than was expected
    files.check("a")
    assert [*files._begun] == ["b"]
    with pytest.raises(TrainError, match=r"/b: is damaged or edited: its xxh3_128 is .*; copy it again"):
        files.check("b")
    files.check("c")

"""Checkpoint files: what an engine holds is written, found and read again, whatever ranks wrote the pieces."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from dst.errors import ConfigError
from tests.support.plain_engine import ALONE, PlainEngine, save_plain
from tests.support.sealed_records import edit_record
from tests.support.train_runs import folders
from trainer.checkpoint import discovery
from trainer.checkpoint import writer as checkpoint_writer
from trainer.checkpoint.discovery import best, latest
from trainer.checkpoint.reader import Checkpoint, load_optimizer, load_weights
from trainer.errors import TrainError


def test_weights_moments_and_buffers_come_back_from_many_small_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_writer, "_FILE_BYTES", 50)
    engine, other = PlainEngine(steps=3), PlainEngine(steps=0)
    saved = save_plain(tmp_path, engine)
    assert len(list(saved.folder.glob("rank-*.safetensors"))) == 5  # a trained tensor each
    assert "0.bias" not in saved.shapes
    with pytest.raises(ConfigError, match=r"0\.bias is frozen and has other weights now than when .*step-00000003"):
        load_weights(other.module, saved)
    frozen = {"0.bias": engine.module.state_dict()["0.bias"]}  # made again from the config
    other.module.load_state_dict(frozen, strict=False)
    load_weights(other.module, saved)
    load_optimizer(other, saved, ranks=ALONE)
    for built_engine in (engine, other):
        assert int(built_engine.module.state_dict()["1.num_batches_tracked"]) == 3
        torch.manual_seed(0)
        built_engine.optimizer.zero_grad()
        built_engine.module(torch.randn(4, 7)).square().sum().backward()
        built_engine.optimizer.step()
    for name, tensor in engine.module.state_dict().items():
        assert torch.equal(tensor, other.module.state_dict()[name]), name


@given(start=st.integers(0, 34), count=st.integers(1, 35))
def test_any_piece_is_read_from_the_pieces_that_ranks_wrote(start: int, count: int) -> None:
    whole = torch.arange(35.0)
    count = min(count, 35 - start)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pieces = []
        for rank, (first, size) in enumerate([(0, 12), (12, 1), (13, 22)]):
            file = f"rank-{rank:05d}-000.safetensors"
            save_file({"weight/w": whole[first : first + size].clone()}, str(folder / file))
            pieces.append([file, first, size])
        content: dict[str, Any] = {"version": 1, "step": 1, "config": {}, "manifest": "m", "frozen": {}}
        content |= {"loader": {}, "loss_scale": {}, "adam_step": 1}
        content["parameters"] = {"w": {"shape": [5, 7], "pieces": pieces}}
        (folder / "checkpoint.json").write_text(json.dumps(content))
        saved = Checkpoint(folder)
        assert torch.equal(saved.elements("weight", "w", start, count), whole[start : start + count])
        assert torch.equal(dict(saved.weights())["w"], whole.view(5, 7))


def test_going_back_to_an_earlier_checkpoint_makes_the_later_ones_old(tmp_path: Path) -> None:
    engine = PlainEngine(steps=1)
    for step in (10, 20, 30, 15):
        save_plain(tmp_path, engine, step=step)
    assert discovery.latest(tmp_path) == tmp_path / "checkpoints/step-00000015"
    assert folders(tmp_path) == ["step-00000015", "step-00000030"]
    save_plain(tmp_path, engine, step=16)
    assert folders(tmp_path) == ["step-00000015", "step-00000016"]


def test_another_runs_checkpoint_is_where_a_run_begins_and_an_own_one_is_where_it_goes_back_to(tmp_path: Path) -> None:
    engine = PlainEngine(steps=1)
    begin = save_plain(tmp_path / "before", engine, step=7).folder
    out = tmp_path / "out"

    def found(resume: Path) -> int:
        gone_on = discovery.find(out, str(resume))
        assert gone_on is not None
        return gone_on.step

    assert found(begin) == 7
    for step in (10, 20):
        save_plain(out, engine, step=step)
    assert found(begin) == 20
    assert found(out / "checkpoints/../checkpoints/step-00000010") == 10


@pytest.mark.parametrize(
    ("shape", "pieces", "why"),
    [
        ([8], [["a.safetensors", 0, 8]], r"weight/w in a\.safetensors has shape \[4\], expected \[8\]"),
        ([2**50], [["a.safetensors", 0, 2**50]], r"a\.safetensors has \d+ bytes, too few for \d+ elements of w"),
        ([2**50], [["a.safetensors", 0, 4]], rf"w has 4 of {2**50} elements"),
        ([4], [["a.safetensors", 0, 4], ["a.safetensors", 0, 4]], "w has 8 of 4 elements"),
        ([4], [["none.safetensors", 0, 4]], r"none\.safetensors: the checkpoint is damaged"),
    ],
)
def test_pieces_that_cannot_be_are_one_line_before_memory_is_taken(
    shape: list[int], pieces: list[Any], why: str, tmp_path: Path
) -> None:
    save_file({"weight/w": torch.zeros(4), "padding": torch.zeros(9)}, tmp_path / "a.safetensors")
    content: dict[str, Any] = {"version": 1, "step": 1, "config": {}, "manifest": "m", "frozen": {}}
    content |= {"loader": {}, "loss_scale": {}, "adam_step": 1, "parameters": {"w": {"shape": shape, "pieces": pieces}}}
    (tmp_path / "checkpoint.json").write_text(json.dumps(content))
    with pytest.raises(TrainError, match=why):
        Checkpoint(tmp_path).weight("w")


@pytest.mark.parametrize("damaged", [b"", b"\xff\xfe\x00", b"step-00000009", b"../../x", b"a\0b"])
def test_a_damaged_pointer_to_the_newest_checkpoint_gives_that_of_the_highest_step(
    tmp_path: Path, damaged: bytes
) -> None:
    folders = [save_plain(tmp_path, PlainEngine(steps=step), step=step).folder for step in (1, 2)]
    (tmp_path / "checkpoints/latest").write_bytes(damaged)
    assert latest(tmp_path) == folders[1]


@pytest.mark.parametrize(
    "damaged", ["", "\xff", "[]", "[" * 100_000, '{"checkpoint": 1}', f'{{"checkpoint": "a", "loss": 1{"0" * 400}}}']
)
def test_a_damaged_record_of_the_best_checkpoint_is_as_none(tmp_path: Path, damaged: str) -> None:
    save_plain(tmp_path, PlainEngine(steps=1), step=1)
    (tmp_path / "checkpoints/best").write_text(damaged, encoding="latin-1")
    assert best(tmp_path) is None


def test_a_description_that_lacks_something_is_named(tmp_path: Path) -> None:
    saved = save_plain(tmp_path, PlainEngine(steps=1))
    edit_record(saved.folder / "checkpoint.json", lambda content: content.pop("loader"))
    with pytest.raises(ConfigError, match=r"checkpoint\.json: cannot be used \(loader: missing; expected an object\)"):
        Checkpoint(saved.folder)

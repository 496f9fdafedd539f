"""Digests of checkpoints, exports and adapters: damage is named before it is used, and by `dsvl-train verify`."""

from __future__ import annotations

import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

pytest.importorskip("torch")
import torch
from click.testing import CliRunner

import trainer
import trainer.compat  # before transformers, which looks for torchvision
from dst.errors import ConfigError, DsvlError
from shards import Build
from tests.support import exports, model_batches
from tests.support.plain_engine import PlainEngine, save_plain
from tests.support.sealed_records import edit_record, flip, without_digests
from trainer.checkpoint.reader import Checkpoint, check_together
from trainer.cli import cli
from trainer.distributed.ranks import Ranks
from trainer.errors import TrainError
from trainer.export.export import export_model
from trainer.model_io.digests import read_sealed
from trainer.verify import verify_folder

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build = pytest.fixture(scope="module")(exports.small_build)
exported = pytest.fixture(scope="module")(exports.small_export)
copy = pytest.fixture(exports.copied)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint with another one before it."""
    save_plain(tmp_path / "run", PlainEngine(steps=1), step=2)
    return save_plain(tmp_path / "run", PlainEngine(steps=2), step=3).folder


def read_checkpoint(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    checkpoint.check_listed()
    dict(checkpoint.weights())
    for name, shape in checkpoint.shapes.items():
        checkpoint.elements("exp_avg", name, 0, torch.Size(shape).numel())
    checkpoint.buffers()


def flips(path: Path, *, count: int, seed: int = 1) -> list[int]:
    """Numbers of bits of a file, evenly sampled: the first, the last, and random ones between."""
    bits = path.stat().st_size * 8
    return sorted({0, bits - 1, *random.Random(seed).sample(range(bits), min(count, bits))})


def test_a_record_that_is_nested_too_deeply_is_refused(copy: Path, saved: Path) -> None:
    for depth in (200, 100_000):
        for path in (copy / "dsvl.json", saved / "checkpoint.json"):
            path.write_text('{"version": 1, "model": ' + "[" * depth + "]" * depth + "}")
        with pytest.raises(TrainError, match=r"dsvl\.json: cannot be used \(it is nested deeper than 100 levels\)"):
            trainer.load(copy)
        with pytest.raises(ConfigError, match=r"checkpoint\.json: cannot be used \(it is nested deeper than"):
            Checkpoint(saved)


def test_every_file_that_a_checkpoint_reads_is_checked_bit_by_bit(saved: Path) -> None:
    read_checkpoint(saved)
    for path in sorted(saved.iterdir()):
        intact = path.read_bytes()
        for bit in flips(path, count=60):
            flip(path, bit)
            with pytest.raises(DsvlError) as caught:
                read_checkpoint(saved)
            assert str(caught.value).count("\n") == 0
            assert f"{path}: " in str(caught.value)
            assert "checkpoints.resume=" in str(caught.value)
            assert "step-00000002" in str(caught.value), "the checkpoint before"
            assert verify_folder(saved).problems == [str(caught.value)]
            path.write_bytes(intact)
    assert verify_folder(saved).problems == []


def test_every_file_that_load_reads_is_checked_bit_by_bit(copy: Path) -> None:
    record = read_sealed(copy / "dsvl.json")
    trainer.load(copy)
    for path in sorted(copy.iterdir()):
        intact, is_read = path.read_bytes(), path.name in {*record["files"], "dsvl.json"}
        for bit in flips(path, count=4):
            flip(path, bit)
            if is_read:
                with pytest.raises(TrainError, match="copy it again, or export the model again") as caught:
                    trainer.load(copy)
                assert f"{path}: " in str(caught.value)
            problems = verify_folder(copy).problems
            assert [problem.partition(": ")[0] for problem in problems] == [str(path)] * (path.name != "README.md")
            path.write_bytes(intact)


@pytest.mark.parametrize("name", ["other.safetensors", "model.safetensors", "added_tokens.json"])
def test_a_foreign_file_is_refused_and_others_stay(name: str, copy: Path, saved: Path) -> None:
    for folder, read in ((copy, trainer.load), (saved, read_checkpoint)):
        (folder / "notes.md").write_text("mine")
        (folder / ".gitattributes").write_text("")
        read(folder)
        (folder / name).write_bytes(b"{}")
        with pytest.raises(TrainError, match=f"{name}: was not written with this folder.*remove the file"):
            read(folder)
        assert len(verify_folder(folder).problems) == 1


def test_missing_and_lengthened_files_are_named(copy: Path, saved: Path) -> None:
    for folder, read in ((copy, trainer.load), (saved, read_checkpoint)):
        path = next(iter(sorted(folder.glob("*.safetensors"))))
        intact = path.read_bytes()
        path.write_bytes(intact + b"\0")
        with pytest.raises(TrainError, match=rf"{path.name}: has {len(intact) + 1} bytes, expected {len(intact)}"):
            read(folder)
        path.unlink()
        with pytest.raises(TrainError, match=rf"{path.name}: is missing"):
            read(folder)
        assert len(verify_folder(folder).problems) == 1


def test_folders_of_an_earlier_release_load_with_a_note(copy: Path, saved: Path) -> None:
    without_digests(copy / "dsvl.json")
    without_digests(saved / "checkpoint.json")
    (note,) = trainer.load(copy).notes
    assert "has no digests of its weights" in note
    read_checkpoint(saved)
    assert "has no digests" in Checkpoint(saved).notes[0]
    for folder in (copy, saved):
        verified = verify_folder(folder)
        assert verified.problems == []
        assert len(verified.notes) == 1
        path = next(iter(sorted(folder.glob("*.safetensors"))))
        path.write_bytes(path.read_bytes()[:-1])
        (problem,) = verify_folder(folder).problems
        assert str(path) in problem


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"step": -1}, "step: got -1; expected a whole number from 0 on"),
        ({"step": "3"}, "step: got '3'"),
        ({"step": True}, "step: got True"),
        ({"adam_step": 1.5}, "adam_step: got 1.5"),
        ({"loader": []}, r"loader: got \[\]; expected an object"),
        ({"frozen": {"w": "x"}}, "frozen.w: got 'x'; expected a list"),
        ({"parameters": {"w": {"shape": [-1], "pieces": []}}}, "parameters.w.shape.0: got -1"),
        ({"parameters": {"w": {"shape": [1], "pieces": [["../x", 0, 1]]}}}, "pieces.0.0: got '../x'"),
        ({"parameters": {"w": {"shape": [1], "pieces": [["x", 0]]}}}, "pieces.0: got"),
        ({"files": {"a": {"size": -1}}}, "files.a.size: got -1"),
    ],
)
def test_a_value_of_checkpoint_json_that_cannot_be_is_one_line(change: dict[str, Any], why: str, saved: Path) -> None:
    edit_record(saved / "checkpoint.json", lambda content: content.update(change))
    with pytest.raises(ConfigError, match=rf"checkpoint\.json: cannot be used \({why}|{why}") as caught:
        Checkpoint(saved)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"step": -1}, "step: got -1"),
        ({"earlier": [{"step": 1}]}, "earlier.0.training: missing"),
        ({"training": 1}, "training: got 1"),
        ({"files": {"a": {"size": "1"}}}, "files.a.size: got '1'"),
    ],
)
def test_a_value_of_dsvl_json_that_cannot_be_is_one_line(change: dict[str, Any], why: str, copy: Path) -> None:
    edit_record(copy / "dsvl.json", lambda record: record.update(change))
    with pytest.raises(TrainError, match=rf"dsvl\.json: cannot be used \({why}.*; copy it again"):
        trainer.load(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_not_exported(value: float, build: Build, tmp_path: Path) -> None:
    config = exports.config_of(build, attention="mmca")
    model = exports.make_model(config, build)
    name, parameter = list(model.named_parameters())[-1]
    parameter.data.view(-1)[-1] = value
    with pytest.raises(TrainError, match=rf"{name}: has NaN or infinite elements in float32; expected finite"):
        export_model(model, config, build, tmp_path / "out", step=1)
    assert list(tmp_path.iterdir()) == []


def test_weights_too_large_for_half_precision_are_not_exported(build: Build, tmp_path: Path) -> None:
    config = exports.config_of(build, attention="mmca")
    model = exports.make_model(config, build)
    next(model.parameters()).data.view(-1)[0] = 1e5
    with pytest.raises(TrainError, match=r"in float16; expected finite weights: export with --precision bf16"):
        export_model(model, config, build, tmp_path / "out", step=1, precision="fp16")
    export_model(model, config, build, tmp_path / "out", step=1, precision="bf16")


def test_the_card_has_the_sha256_of_the_weights(exported: Path) -> None:
    lines = (exported / "README.md").read_text().partition("```text\n")[2].partition("```")[0]
    assert lines.count("\n") == len(list(exported.glob("*.safetensors"))) > 1
    check = subprocess.run(["sha256sum", "--check"], input=lines, text=True, cwd=exported, capture_output=True)
    assert check.returncode == 0, check.stdout


def test_ranks_check_a_share_of_the_files_each_and_all_report_damage(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier, gathered = Barrier(2, timeout=30), {}

    def gather(ranks: Ranks, problems: list[str]) -> list[list[str]]:
        gathered[ranks.rank] = problems
        barrier.wait()
        return [gathered[0], gathered[1]]

    def check(rank: int) -> str:
        ranks = Ranks(rank=rank, world_size=2, device=torch.device("cpu"))
        with pytest.raises(TrainError) as caught:
            check_together(Checkpoint(saved), ranks=ranks)
        return str(caught.value)

    monkeypatch.setattr(Ranks, "gather", gather)
    finders = []
    for path in sorted(saved.glob("*.safetensors")):
        intact = path.read_bytes()
        flip(path, 8 * (len(intact) - 1))
        with ThreadPoolExecutor(2) as threads:
            first, second = threads.map(check, range(2))
        assert first == second
        assert first.startswith(f"{path}: is damaged")
        finders.append([rank for rank in range(2) if gathered[rank]])
        path.write_bytes(intact)
    assert finders == [[0], [1]], "each file is read by one rank"


def test_a_run_is_verified_with_all_its_checkpoints(saved: Path) -> None:
    out = saved.parent.parent
    intact = CliRunner().invoke(cli, ["verify", str(out)])
    assert intact.exit_code == 0, intact.output
    assert "7 files" in intact.output
    assert ": no problems" in intact.output
    for number in (2, 3):
        flip(saved.with_name(f"step-{number:08d}") / "rank-00000-000.safetensors", 900)
    (saved.parent / "latest").write_text("step-00000009\n")
    damaged = CliRunner().invoke(cli, ["verify", str(out)])
    assert damaged.exit_code == 1
    assert damaged.output.count("is damaged") == 3
    assert ": 3 problems" in damaged.output


def test_names_of_files_cannot_change_the_terminal(saved: Path) -> None:
    (saved / "\x1b]0;title\x07.safetensors").write_bytes(b"")
    shown = CliRunner().invoke(cli, ["verify", str(saved)])
    assert shown.exit_code == 1
    assert "\\x1b]0;title\\x07.safetensors: was not written with this folder" in shown.output
    assert "\x1b" not in shown.output


def test_a_folder_whose_name_is_not_utf_8_is_refused_before_work_starts(copy: Path) -> None:
    odd = copy.with_name(os.fsdecode(b"d\xff"))
    copy.rename(odd)
    with pytest.raises(ConfigError, match="the name is not UTF-8; rename it"):
        trainer.load(odd)
    for arguments in (["verify", odd], ["chat", "--model", odd], ["export", "--model", copy, "--out", odd]):
        shown = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert shown.exit_code == 2
        assert "d\\udcff: the name is not UTF-8; rename it" in shown.output


def test_a_folder_that_is_none_of_ours_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to verify there; expected a run's `out` folder"):
        verify_folder(tmp_path)

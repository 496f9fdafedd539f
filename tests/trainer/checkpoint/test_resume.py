"""Runs that resume: they equal runs that were not stopped, whatever stopped them and wherever they resume."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import train_runs
from tests.support.sealed_records import edit_record, flip, without_digests
from tests.support.train_runs import config_file, folders, journal, losses, start, train
from trainer.checkpoint import discovery

STEPS = 9
EVERY = 3
ADAPTERS = {"learning_rates": {"embeddings": 1e-3, "decoder": None}, "lora": {"decoder": {"dropout": 0.1}}}


def settings(**more: Any) -> dict[str, Any]:
    return {"schedule": {"steps": STEPS}, "checkpoints": {"every": EVERY}, **more}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_runs.compiled(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def whole(build: Path) -> Path:
    """The folder of a run that nothing stopped, at stage 2."""
    config = config_file(build.parent / "whole", build, **settings())
    train(config)
    return config.parent


@pytest.fixture
def half(whole: Path, build: Path, tmp_path: Path) -> Path:
    """A config whose folder holds the checkpoint of step 6, as if the run had stopped there."""
    config = config_file(tmp_path, build, **settings())
    shutil.copytree(whole / "out/checkpoints/step-00000006", tmp_path / "out/checkpoints/step-00000006")
    return config


def stopped_half_way(config: Path, ranks: int, step: int) -> None:
    """Train, and kill every rank after this step, which is the first after a checkpoint."""
    out = config.parent / "out"
    run = start(config, ranks=ranks, hold_after=step)
    run.wait_for_step(out, step)
    run.kill(signal.SIGKILL)
    run.wait()
    run_losses = losses(out)
    assert len(run_losses) == step
    assert f"step-{step - 1:08}" in folders(out)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (1, 2), (2, 3)])
def test_a_killed_run_resumes_to_the_bit(build: Path, tmp_path: Path, ranks: int, stage: int) -> None:
    run = {"schedule": {"steps": 5}, "checkpoints": {"every": 2}}
    more = {**run, **ADAPTERS, "zero": {"stage": stage}, "batch": {"workers": ranks - 1}}
    for name in ("whole", "killed"):
        config = config_file(tmp_path / name, build, **more)
        if name == "killed":
            stopped_half_way(config, ranks, step=3)
        train(config, ranks=ranks)
    assert len(losses(tmp_path / "killed/out")) == 5
    assert losses(tmp_path / "killed/out") == losses(tmp_path / "whole/out")
    norms = [[entry["grad_norm"] for entry in journal(tmp_path / name / "out")] for name in ("whole", "killed")]
    assert norms[0] == norms[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "stage"), [(2, 1, 1), (1, 2, 1), (2, 1, 2), (1, 2, 2), (2, 1, 3), (1, 2, 3)]
)
def test_another_number_of_ranks_resumes_with_the_same_losses(
    whole: Path, build: Path, tmp_path: Path, first: int, second: int, stage: int
) -> None:
    config = config_file(tmp_path, build, **settings(zero={"stage": stage}))
    train(config, "checkpoints.every=6", ranks=first)
    out = tmp_path / "out"
    shutil.rmtree(out / "checkpoints/step-00000009")
    done = train(config, ranks=second)
    assert "resuming after step 6 of 9" in done.output
    assert losses(out) == pytest.approx(losses(whole / "out"), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (3, "fp32"), (3, "bf16"), (1, "bf16")])
def test_another_stage_or_precision_resumes_from_the_same_weights(
    half: Path, whole: Path, stage: int, precision: str
) -> None:
    train(half, f"zero.stage={stage}", f"precision={precision}", "logging.every=1")
    resumed_losses = [entry["loss"] for entry in journal(half.parent / "out")]
    assert resumed_losses == pytest.approx(losses(whole / "out")[6:], rel=1e-6 if precision == "fp32" else 5e-3)


@pytest.mark.slow
def test_a_run_in_half_precision_resumes_to_the_bit(build: Path, tmp_path: Path) -> None:
    for stage in (1, 3):
        config = config_file(tmp_path / str(stage), build, **settings(precision="bf16", zero={"stage": stage}))
        train(config)
        out = tmp_path / str(stage) / "out"
        unbroken = losses(out)
        shutil.rmtree(out / "checkpoints/step-00000009")
        train(config)
        assert losses(out) == unbroken


@pytest.mark.slow
def test_the_newest_and_the_best_are_kept(build: Path, tmp_path: Path) -> None:
    config = config_file(
        tmp_path,
        build,
        schedule={"steps": 6, "warmup_ratio": 0, "kind": "constant"},
        checkpoints={"every": 1, "keep": 2},
        evaluation={"every": 2},
        learning_rates={"projector": None, "embeddings": None, "decoder": 0.1},  # it gets worse after some steps
    )
    train(config)
    out = tmp_path / "out"
    evaluations = {entry["step"]: entry["loss"] for entry in journal(out) if entry["kind"] == "eval"}
    assert list(evaluations) == [2, 4, 6]
    best = min(evaluations, key=lambda step: evaluations[step])
    assert folders(out) == sorted({f"step-{step:08d}" for step in (best, 5, 6)})
    named = json.loads((out / "checkpoints/best").read_text())
    assert named == {"checkpoint": f"step-{best:08d}", "loss": evaluations[best]}
    assert (out / "checkpoints/latest").read_text() == "step-00000006\n"

    # A run that goes back comes by step 6 again: what was logged the first time does not belong to that checkpoint.
    (out / "checkpoints/latest").write_text("step-00000005\n")
    (out / "checkpoints/best").write_text(json.dumps({"checkpoint": "step-00000006", "loss": 0.0}))
    train(config)
    assert discovery.best(out) == (out / "checkpoints/step-00000006", evaluations[6])
    shutil.rmtree(out / "checkpoints/step-00000006")
    assert discovery.best(out) is None


@pytest.mark.slow
def test_a_full_disk_while_saving_leaves_the_checkpoint_before(half: Path, whole: Path) -> None:
    out = half.parent / "out"
    for ranks in (1, 2):
        done = train(half, f"batch.workers={ranks - 1}", ranks=ranks, code=1, max_file_bytes=200_000)
        assert re.search(r"step-00000009: cannot be written: .* \([\d,]+ bytes free, [\d,]+ needed\)", done.output)
        assert f"the checkpoint {out / 'checkpoints/step-00000006'} is unchanged" in done.output
        assert "free disk space and run the same command again" in done.output
        assert folders(out) == ["step-00000006"]
    train(half)
    assert [entry["loss"] for entry in journal(out)] == losses(whole / "out")[6:]


@pytest.mark.slow
def test_what_a_killed_save_left_is_removed(half: Path) -> None:
    left = half.parent / "out/checkpoints/.step-00000007.partial"
    left.mkdir()
    (left / "rank-00000-000.safetensors").write_bytes(b"half of it")
    (half.parent / "out/checkpoints/step-00000008").mkdir()  # its content was unlinked when it was removed
    done = train(half)
    assert "resuming after step 6 of 9" in done.output
    assert not left.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model": {"attention": "causal"}}, "model.attention: is 'causal', the checkpoint "),
        ({"learning_rates": {"decoder": None}}, "learning_rates.decoder: is None, the checkpoint "),
        ({"lora": {"decoder": {}}}, "lora.decoder: is {"),
        ({"seed": 5}, "seed: is 5, the checkpoint "),
        (
            {"batch": {"packed": False, "global_batch_size": 4}},
            "batch: loader state: packed is True, this loader has False",
        ),
    ],
)
def test_a_checkpoint_of_another_config_is_refused_with_what_differs(
    half: Path, changes: dict[str, Any], problem: str
) -> None:
    tree = yaml.safe_load(half.read_text())
    for name, values in changes.items():
        tree[name] = {**tree.get(name, {}), **values} if isinstance(values, dict) else values
    half.write_text(yaml.safe_dump(tree))
    done = train(half, code=2)
    assert f"error: {problem}" in done.output
    assert "start a new run" in done.output or "start again" in done.output


@pytest.mark.slow
def test_other_learning_rates_and_layouts_fit_a_checkpoint(half: Path) -> None:
    train(
        half,
        "learning_rates.decoder=5e-4",
        "batch.micro_batch_size=2",
        "model.decoder.attn_implementation=eager",
        "logging.every=3",
    )
    assert journal(half.parent / "out")[-1]["step"] == STEPS


@pytest.mark.slow
def test_a_checkpoint_of_another_build_or_a_newer_release_is_refused(half: Path, tmp_path: Path) -> None:
    path = half.parent / "out/checkpoints/step-00000006/checkpoint.json"
    edit_record(path, lambda content: content.update(manifest="0" * 64))
    assert "the checkpoint " in train(half, code=2).output
    assert "build: its manifest is" in train(half, code=2).output
    edit_record(path, lambda content: content.update(version=2))
    done = train(half, code=2)
    assert "the checkpoint is newer: version 2, this program reads 1; update dsvl" in done.output


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named(half: Path) -> None:
    file = half.parent / "out/checkpoints/step-00000006/rank-00000-000.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    done = train(half, code=1)
    assert "rank-00000-000.safetensors: has " in done.output
    assert done.output.count("error: ") == 1


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_flipped_bit_ends_the_run_with_one_error_that_names_the_file(ranks: int, half: Path) -> None:
    for file in sorted((half.parent / "out/checkpoints/step-00000006").glob("*.safetensors")):
        flip(file, 8 * (file.stat().st_size - 1))
        done = train(half, ranks=ranks, code=1)
        assert f"{file.name}: is damaged or edited: its xxh3_128 is " in done.output
        assert done.output.count("error: ") == 1
        flip(file, 8 * (file.stat().st_size - 1))


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_release_resumes_with_a_note(half: Path, whole: Path) -> None:
    without_digests(half.parent / "out/checkpoints/step-00000006/checkpoint.json")
    assert "note: " in (output := train(half).output)
    assert "step-00000006: has no digests" in output
    assert [entry["loss"] for entry in journal(half.parent / "out")] == losses(whole / "out")[6:]


@pytest.mark.slow
def test_resume_can_be_refused_and_can_name_a_checkpoint(half: Path, whole: Path, tmp_path: Path) -> None:
    assert "checkpoints.resume: is never, but" in train(half, "checkpoints.resume=never", code=2).output
    missing = train(half, f"checkpoints.resume={tmp_path}", code=2)
    assert "no checkpoint there" in missing.output
    other = tmp_path / "other"
    train(half, f"out={other}", f"checkpoints.resume={whole / 'out/checkpoints/step-00000006'}")
    assert [entry["loss"] for entry in journal(other)] == losses(whole / "out")[6:]

"""Runs on a build with tiles: ranks, ZeRO, branches, LoRA, resuming; and chat and eval with what they trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("deepspeed")

import shards
from shards.loader import Loader
from tests.support import small_blends, tiled_builds
from tests.support.train_runs import config_file, losses, train
from trainer.evaluation.compatibility import check_model_fits_build
from trainer.evaluation.held_out import prompt_for, questions_of
from trainer.evaluation.runner import answer_held_out
from trainer.inference.generate import Sampling
from trainer.inference.open_model import open_model

SIZES = ((96, 64), (33, 31), (64, 200), (40, 64), (128, 128), (20, 90), (96, 64), (90, 32))
STEPS = 3


def compiled(folder: Path, share: int = 1) -> Path:
    """Four records for each of two images, one for each other; some held out."""
    blend = tiled_builds.tiled_blend(
        folder, images=[[size] for size in SIZES], dataset={"share": share}, split={"eval": 0.3}
    )
    lines = (folder / "mine/chat.jsonl").read_text().splitlines()
    more = [
        json.dumps({**json.loads(line), "id": f"{number}-{copy}"})
        for number, line in enumerate(lines[:2])
        for copy in range(3)
    ]
    (folder / "mine/chat.jsonl").write_text("\n".join([*lines, *more]))
    return small_blends.build(blend).path


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {share: compiled(tmp_path_factory.mktemp(f"share{share}"), share) for share in (1, 4)}


def run(folder: Path, build: Path, **settings: Any) -> list[float]:
    settings = {"batch": {"global_batch_size": 2, "packed": True}, "schedule": {"steps": STEPS}, **settings}
    ranks = settings.pop("ranks", 1)
    train(config_file(folder, build, **{"checkpoints": {"every": STEPS}, **settings}), ranks=ranks)
    return losses(folder / "out")


@pytest.fixture(scope="module")
def alone(builds: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], list[float]]:
    """Losses on one rank without ZeRO."""
    return {
        (share, attention): run(
            tmp_path_factory.mktemp("alone"), build, model={"attention": attention}, zero={"stage": 0}
        )
        for share, build in builds.items()
        for attention in ("mmca", "causal")
    }


@pytest.mark.parametrize(
    ("share", "attention", "stage"), [(1, "mmca", 2), (1, "causal", 3), (4, "mmca", 3), (4, "causal", 1)]
)
def test_two_ranks_train_as_one(
    share: int,
    attention: str,
    stage: int,
    builds: dict[int, Path],
    alone: dict[tuple[int, str], list[float]],
    tmp_path: Path,
) -> None:
    assert shards.open(builds[share]).manifest.has_branches == (share > 1)
    ours = run(tmp_path, builds[share], model={"attention": attention}, zero={"stage": stage}, ranks=2)
    assert ours == pytest.approx(alone[share, attention], rel=1e-5)
    assert ours[-1] < ours[0]


def test_the_tiles_are_looked_at(builds: dict[int, Path], tmp_path: Path) -> None:
    """A model with other pixels in one tile, all else equal, has another loss."""
    run(tmp_path, builds[1])
    speaker, build = open_model(tmp_path / "out")
    assert build is not None
    batch = next(iter(Loader(build, batch_size=1, max_length=256)))
    whole = speaker.model(**batch.tensors()).total
    for tile in range(len(batch.images)):
        images = batch.images.clone()
        images[tile] = 255 - images[tile]
        changed = speaker.model(**{**batch.tensors(), "images": images}).total
        assert abs(float(changed - whole)) > 0, f"tile {tile} makes no difference"


def test_a_resumed_run_with_lora_and_recomputed_activations_goes_on_with_the_same_losses(
    builds: dict[int, Path], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "lora": {"decoder": {"rank": 2}},
        "gradient_checkpointing": True,
        "checkpoints": {"every": 2},
    }
    whole = run(tmp_path / "whole", builds[1], **settings, schedule={"steps": 4, "kind": "constant"})
    parts = {**settings, "batch": {"global_batch_size": 2}, "schedule": {"steps": 2, "kind": "constant"}}
    config = config_file(tmp_path / "parts", builds[1], **parts)
    train(config)
    train(config, "schedule.steps=4")
    assert losses(tmp_path / "parts/out") == pytest.approx(whole, rel=1e-6)


def test_held_out_questions_about_tiles_are_asked_as_training_sees_them(
    builds: dict[int, Path], tmp_path: Path
) -> None:
    run(tmp_path, builds[4])
    speaker, build = open_model(tmp_path / "out")
    assert build is not None
    (batch,) = Loader(build, split="eval", batch_size=4, max_length=512)
    tokenizer = speaker.chat_tokenizer.tokenizer
    questions = questions_of(build, tokenizer)
    assert questions
    for question in questions:
        prompt = prompt_for(build, question, speaker.geometry, tokenizer.image_id)
        assert len(prompt.ids) == question.positions
        assert len(prompt.images) == len(prompt.slots) == build["eval"][question.index].tiles
    assert max(len(batch.images), 0) == sum(sample.tiles for sample in build["eval"])
    assert check_model_fits_build(speaker, build.manifest) == []
    scored = answer_held_out(
        speaker, build, questions, Sampling(max_new_tokens=3), batch=2, advance=lambda amount: None
    )
    assert len(scored.dialogues) == len({(question.index, question.branch) for question in questions})


def test_a_build_with_other_tiles_is_refused_in_evaluation(builds: dict[int, Path], tmp_path: Path) -> None:
    run(tmp_path, builds[1])
    speaker, _ = open_model(tmp_path / "out")
    other = tiled_builds.tiled(tmp_path / "other", image={"tiles": 1}, split={"eval": 0.5})
    (problem,) = [line for line in check_model_fits_build(speaker, other.manifest) if line.startswith("image")]
    assert problem == ("image.tiles: this build's is 1 but the model was made for 6; rebuild with image: {tiles: 6}")


def test_an_encoder_of_another_size_than_the_tiles_is_refused_in_a_line(
    builds: dict[int, Path], tmp_path: Path
) -> None:
    encoder = {"kind": "tiny", "config": {"image_size": 64, "patch_size": 16}}
    done = train(config_file(tmp_path, builds[1], model={"encoder": encoder}), code=2)
    (line, *_) = [line for line in done.output.splitlines() if line.startswith("error: model.encoder")]
    assert "64" in line
    assert "32" in line
    assert "rebuild with image: {size: 64}" in line

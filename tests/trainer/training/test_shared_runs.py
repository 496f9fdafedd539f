"""Runs on a build with branches have the losses of runs on the same records apart, with any ZeRO stage and ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("deepspeed")

from tests.support import small_blends
from tests.support.train_runs import IMAGE_TOKENS, LENGTH, SIDE, config_file, journal, losses, train

QUESTIONS = (3, 2, 3, 4)
"""Records about each image: as many samples as two ranks take sequences of, with branches and without"""
STEPS = 3


def compiled(folder: Path, share: int) -> Path:
    folder.mkdir()
    names = small_blends.write_images(folder / "mine", len(QUESTIONS))
    asked = [name for name, count in zip(names, QUESTIONS, strict=True) for _ in range(count)]
    records = [small_blends.chat_record(number, images=[name]) for number, name in enumerate(asked)]
    blend = small_blends.chat_blend(
        folder,
        records,
        dataset={"share": share},
        image_tokens=IMAGE_TOKENS,
        limits={"max_length": 2 * LENGTH},
        image={"size": SIDE, "store": "resized"},
    )
    return small_blends.build(blend).path


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The records apart, and with branches."""
    folder = tmp_path_factory.mktemp("builds")
    return compiled(folder / "apart", 1), compiled(folder / "shared", 8)


def run(folder: Path, build: Path, attention: str, sequences: int, stage: int, ranks: int) -> list[tuple[float, float]]:
    """Losses and gradient norms of steps that each train on the whole epoch, one sample in a sequence."""
    config = config_file(
        folder,
        build,
        model={"attention": attention},
        batch={"global_batch_size": sequences, "micro_batch_size": 2, "packed": False},
        schedule={"steps": STEPS},
        zero={"stage": stage},
        checkpoints={"every": 0},
    )
    train(config, ranks=ranks)
    norms = [entry["grad_norm"] for entry in journal(folder / "out") if entry["kind"] == "train"]
    return list(zip(losses(folder / "out"), norms, strict=True))


@pytest.fixture(scope="module")
def apart(builds: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[float, float]]]:
    folder = tmp_path_factory.mktemp("apart")
    return {
        attention: run(folder / attention, builds[0], attention, sum(QUESTIONS), 0, 1)
        for attention in ("mmca", "causal")
    }


@pytest.mark.parametrize(
    ("attention", "stage", "ranks"),
    [("mmca", 0, 1), ("causal", 1, 2), ("mmca", 2, 2), ("causal", 3, 2), ("mmca", 3, 1), ("causal", 2, 1)],
)
def test_every_step_has_the_loss_and_the_gradient_of_the_records_apart(
    builds: tuple[Path, Path],
    apart: dict[str, list[tuple[float, float]]],
    tmp_path: Path,
    attention: str,
    stage: int,
    ranks: int,
) -> None:
    ours = run(tmp_path, builds[1], attention, len(QUESTIONS), stage, ranks)
    for step, expected in zip(ours, apart[attention], strict=True):
        assert step == pytest.approx(expected, rel=1e-5)
    assert apart[attention][0][0] > apart[attention][-1][0], "it learns, so later losses depend on the gradients"

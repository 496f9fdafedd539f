"""Programs that iterate a loader of ours: torch.distributed, Accelerate, and Lightning's loops."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import shards
from shards import Build, ShardError
from shards.loader import Batch, Loader
from tests.support.handmade_builds import MAX_LENGTH, Handmade, draft

BATCHES = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Handmade(tmp_path_factory.mktemp("guests"))
    for start in range(0, 120, 30):
        made.add([draft(number, text=8 + number % 20) for number in range(start, start + 30)])
    made.add([draft(number, split="eval") for number in range(10)], split="eval")
    return made.finish()


@pytest.fixture
def build(folder: Path) -> Build:
    return shards.open(folder)


def loader(build: Build, **settings: Any) -> Loader:
    return Loader(build, **{"batch_size": 4, "max_length": MAX_LENGTH, "decode": "none", **settings})


def cursors(batches: Any, count: int) -> list[int]:
    return [batch.cursor for batch in islice(batches, count)]


# Its length


def test_the_length_is_the_number_of_batches(build: Build) -> None:
    for settings in ({"epochs": 1}, {"epochs": 3}, {"epochs": 1, "batch_size": 8}, {"split": "eval"}):
        assert len(loader(build, **settings)) == sum(1 for _ in loader(build, **settings))
    assert len(loader(build)) == len(loader(build, epochs=1)), "without an end it is that of an epoch"


def test_an_iteration_after_the_last_epoch_says_that_it_gives_nothing(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    ours = loader(build, epochs=1)
    assert sum(1 for _ in ours) == BATCHES
    assert not caplog.records
    assert sum(1 for _ in ours) == 0
    assert "its 1 epochs were given out, so this iteration gives nothing" in caplog.text


# torch.distributed


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the first process of a group of two."""
    for name, value in (("is_initialized", True), ("get_world_size", 2), ("get_rank", 1)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)


@pytest.mark.usefixtures("two_ranks")
def test_ranks_that_would_all_train_on_everything_are_refused(build: Build) -> None:
    with pytest.raises(ShardError, match=r"rank 1 of 2 iterates .*; expected Loader\(rank=1, world_size=2\)"):
        next(iter(loader(build)))


@pytest.mark.usefixtures("two_ranks")
def test_ranks_that_were_named_and_evaluations_are_not_refused(build: Build) -> None:
    assert len(next(iter(loader(build, rank=1, world_size=2))).input_ids) == 2
    assert len(next(iter(loader(build, world_size=1))).input_ids) == 4
    assert len(next(iter(loader(build, split="eval"))).input_ids) == 4


# Accelerate


@pytest.fixture
def accelerator() -> Iterator[Any]:
    accelerate = pytest.importorskip("accelerate")
    yield accelerate.Accelerator(cpu=True)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_accelerate_leaves_a_loader_as_it_is(build: Build, accelerator: Any) -> None:
    ours = loader(build)
    prepared = accelerator.prepare(ours)
    assert prepared is ours
    assert cursors(prepared, 3) == cursors(loader(build), 3)


def test_accelerate_saves_and_loads_the_state_of_a_loader(build: Build, accelerator: Any, tmp_path: Path) -> None:
    ours = loader(build)
    accelerator.register_for_checkpointing(ours)
    batches = iter(ours)
    next(batches)
    accelerator.save_state(str(tmp_path))
    expected = cursors(batches, 3)
    accelerator.load_state(str(tmp_path))
    assert cursors(ours, 3) == expected


# Lightning


@pytest.fixture
def lightning() -> Any:
    import trainer.compat  # noqa: F401  torchvision next to a torch without CUDA

    return pytest.importorskip("pytorch_lightning")


@pytest.fixture
def fit(lightning: Any, tmp_path: Path) -> Callable[..., tuple[list[int], Any]]:
    """Train over a loader; gives the cursors of the batches of training, and the trainer."""

    class Model(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.cursors: list[int] = []
            self.evaluated: list[int] = []

        def training_step(self, batch: Batch, index: int) -> torch.Tensor:
            self.cursors.append(batch.cursor)
            return self.layer(batch.labels.float().mean()[None]).mean()  # type: ignore[no-any-return]

        def validation_step(self, batch: Batch, index: int) -> None:
            self.evaluated.append(batch.cursor)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    def run(*loaders: Loader, checkpoint: Path | None = None, **settings: Any) -> tuple[list[int], Any]:
        model = Model()
        trainer = lightning.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
            **settings,
        )
        trainer.fit(model, *loaders, ckpt_path=checkpoint, weights_only=False)
        return model.cursors, trainer

    return run


quiet = pytest.mark.filterwarnings("ignore")
"""Lightning's own warnings, of packages and of what it was not asked to do"""


@quiet
def test_lightning_trains_epoch_after_epoch_and_evaluates(build: Build, fit: Callable[..., Any]) -> None:
    seen, trainer = fit(loader(build), loader(build, split="eval"), max_epochs=2)
    assert seen == cursors(loader(build), 2 * BATCHES)
    assert trainer.model.evaluated == cursors(loader(build, split="eval"), 1) * 2


@quiet
@pytest.mark.parametrize("stop", [4, BATCHES, BATCHES + 2])
def test_lightning_resumes_with_the_next_batch(
    build: Build, fit: Callable[..., Any], tmp_path: Path, stop: int
) -> None:
    seen, trainer = fit(loader(build), max_steps=stop)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    more, _ = fit(loader(build), max_steps=stop + 5, checkpoint=tmp_path / "half.ckpt")
    assert seen + more == cursors(loader(build), stop + 5)


@quiet
def test_lightning_says_that_a_loader_has_no_more_epochs(
    build: Build, fit: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        seen, _ = fit(loader(build, epochs=1), max_epochs=2)
    assert len(seen) == BATCHES
    assert "expected a Loader without epochs" in caplog.text

"""Datasets of conversations about images, as the compiler's stages before the tasks see them; no process is started."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from dst.common.progress import Silent
from preprocess.compiler.fingerprints import FingerprintStage
from preprocess.compiler.image_states import image_states
from preprocess.compiler.spool import Spool, write_spool
from preprocess.compiler.task_runner import TaskRunner
from preprocess.conversation import Conversation, Image, OfficialSplit, RecordSource, Turn
from tests.support.in_process import in_this_process

T = TypeVar("T")
R = TypeVar("R")


def about(
    *names: str | tuple[str, int],
    question: str = "What is it?",
    answer: str = "A thing.",
    official_split: OfficialSplit = "",
    identity: str = "",
) -> Conversation:
    """One round about images, each in any store or in the store with this number; the groups are their names."""
    images = [Image(name=name) if isinstance(name, str) else Image(name=name[0], store=name[1]) for name in names]
    identity = identity or f"{'+'.join(image.name for image in images)}: {question}"
    return Conversation(
        id=identity,
        turns=(Turn(role="user", parts=(*images, question)), Turn(role="assistant", parts=(answer,))),
        sources=(RecordSource(file="a.json", record=identity),),
        groups=tuple(image.name for image in images),
        official_split=official_split,
    )


def spools_of(folder: Path, datasets: Mapping[str, Iterable[Conversation]]) -> dict[str, Spool]:
    spools = {}
    for name, conversations in datasets.items():
        target = folder / ".spools" / name
        target.mkdir(parents=True, exist_ok=True)
        write_spool(target, name, conversations)
        spools[name] = Spool(target)
    return spools


class Here(TaskRunner):
    """Runs tasks in this process, and sums the weights of those that no earlier run finished."""

    def __init__(self) -> None:
        super().__init__(in_this_process, 1, Silent())
        self.work = 0

    def __call__(
        self,
        label: str,
        function: Callable[[T], R],
        tasks: Sequence[T],
        *,
        known: Callable[[T], R | None],
        weight: Callable[[T], int] = lambda task: 1,
        marker: Callable[[T], Path] | None = None,
    ) -> list[R]:
        def counted(task: T) -> R:
            self.work += weight(task)
            return function(task)

        return super().__call__(label, counted, tasks, known=known, weight=weight, marker=marker)


def stage_of(
    folder: Path,
    datasets: Mapping[str, Iterable[Conversation]],
    stores: Mapping[str, Sequence[Path]] | None = None,
    run: Here | None = None,
) -> FingerprintStage:
    """The fingerprint stage of datasets whose images are in `folder / name`, unless `stores` says where."""
    spools, run = spools_of(folder, datasets), run or Here()
    places = {name: tuple(stores[name]) if stores else (folder / name,) for name in spools}
    return FingerprintStage(
        spools=spools,
        stores=places,
        states=image_states(spools, places, folder / ".cache", run),
        cache=folder / ".cache",
        max_pixels=10**6,
        run=run,
        used=set(),
        looks=[],
    )

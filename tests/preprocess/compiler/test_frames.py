"""Builds with `frames: even:N`: frames are images for limits, split, duplicates and provenance."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import shards
from dst.common.progress import Silent
from preprocess.blend.resolve import prepare, request_of
from preprocess.compiler.fingerprints import FingerprintStage
from preprocess.compiler.frames import FramesStage
from preprocess.compiler.image_copies import copies_by_bytes, copies_by_look
from preprocess.compiler.image_states import image_states
from preprocess.compiler.ingest import Ingested, ingest_task, run_ingest
from preprocess.compiler.spool import Spool
from preprocess.compiler.task_runner import TaskRunner
from tests.support.frame_files import animation, encoded, grey
from tests.support.in_process import in_this_process
from tests.support.small_blends import build, chat_blend, files_of, rejects_of

RECORDS = [
    {"id": "film", "video": "a.gif", "text": "<video>\nWhat happens?"},
    {"id": "copy", "video": "b.gif", "text": "<video>\nAnd here?"},
    {"id": "folder", "video": "v", "text": "What is this?"},
    {"id": "still", "image": "v/2.png", "text": "<image>\nWhat is it?"},
    {"id": "none", "video": "none.gif", "text": "<video>\nWhat?"},
    {"id": "broken", "video": "broken.gif", "text": "<video>\nWhy?"},
]


def record(text: str, **keys: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": f"It is {keys['id']}."}]
    return {"messages": messages, **keys}


def blend_of(folder: Path, frames: str = "even:3", **settings: Any) -> Path:
    files = {"a.gif": animation("GIF", 9), "b.gif": animation("GIF", 9), "broken.gif": b"GIF89a"}
    files |= {f"v/{number}.png": encoded(grey(12 + number)) for number in (10, 2, 1)}
    for name, data in files.items():
        (folder / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "mine" / name).write_bytes(data)
    settings = {"limits": {"max_reject_share": 1}, "dataset": {"frames": frames}, **settings}
    return chat_blend(folder, [record(**one) for one in RECORDS], **settings)


def images_of(folder: Path) -> dict[str, tuple[list[tuple[str, int | None]], list[str]]]:
    """Number of a record -> its images, as names and frames, and its notes."""
    found = {}
    for _, _, shard in shards.open(folder / "build").shards():
        for row in range(len(shard)):
            metadata = shard[row].metadata
            images = [(image["name"], image.get("frame")) for image in metadata["images"]]
            found[metadata["sources"][0]["record"]] = (images, metadata.get("notes", []))
    return found


def test_frames_are_the_images_of_a_sample(tmp_path: Path) -> None:
    report = build(blend_of(tmp_path)).datasets["mine"]
    assert images_of(tmp_path) == {
        "film": ([("a.gif", 0), ("a.gif", 4), ("a.gif", 8)], ["frames_cut"]),
        "copy": ([("b.gif", 0), ("b.gif", 4), ("b.gif", 8)], ["frames_cut"]),
        "folder": ([("v/1.png", None), ("v/2.png", None), ("v/10.png", None)], ["image_placed_first"]),
        "still": ([("v/2.png", None)], []),
    }
    reasons = {reject["record"]: reject["reason"] for reject in rejects_of(tmp_path / "build")}
    assert reasons == {"none": "image_missing", "broken": "image_unreadable"}
    assert (report.records, report.images) == (6, 10)
    first = files_of(tmp_path / "build")
    again = build(tmp_path / "blend.yaml")
    assert (again.built_tasks, files_of(tmp_path / "build")) == (0, first)


def spread(folder: Path, count: int, **settings: Any) -> tuple[Ingested, Spool, FingerprintStage]:
    """The stage alone: its records, and a stage to compare their images."""
    (folder / "cache").mkdir(exist_ok=True)
    run, used = TaskRunner(in_this_process, 1, Silent()), set[Path]()
    prepared = prepare(blend_of(folder, **settings))
    stores = prepared.inputs["mine"].images
    request = request_of(prepared.blend, prepared.blend.datasets[0], prepared.inputs["mine"])
    task = ingest_task("mine", "chat", request, folder / "cache", None)
    stage = FramesStage(folder / "cache", 10**6, run, used)
    ingested, spool = stage.spread("mine", run_ingest(task), Spool(task.folder), stores, count)
    compare = FingerprintStage(
        spools={"mine": spool},
        stores={"mine": stores},
        states=image_states({"mine": spool}, {"mine": stores}, folder / "cache", run),
        cache=folder / "cache",
        max_pixels=10**6,
        run=run,
        used=used,
        looks=[],
    )
    return ingested, spool, compare


def test_limits_and_shards_count_frames(tmp_path: Path) -> None:
    ingested, spool, _ = spread(tmp_path, 3)
    assert spool.counts("images").tolist() == [3, 3, 3, 1, 1]
    assert (ingested.conversations, ingested.rejects) == (5, {"image_unreadable": 1})


def test_a_frame_that_is_added_to_a_folder_is_seen(tmp_path: Path) -> None:
    spread(tmp_path, 4)
    (tmp_path / "mine/v/3.png").write_bytes(encoded(grey(3)))
    _, spool, _ = spread(tmp_path, 4)
    assert [image.name for image in spool[2].images] == ["v/1.png", "v/2.png", "v/3.png", "v/10.png"]


def test_copies_of_a_video_and_the_images_of_a_folder_share_groups(tmp_path: Path) -> None:
    _, spool, stage = spread(tmp_path, 3)
    for copies in (copies_by_bytes(stage), copies_by_look(stage, 0)):
        groups, starts = copies.groups("mine", spool)
        film, copy, folder, still, _ = (set(groups[begin:end]) for begin, end in pairwise(starts))
        assert film & copy
        assert folder & still
        assert not (film | copy) & (folder | still)


def test_a_video_and_its_copy_are_compared_as_files_or_by_their_frames(tmp_path: Path) -> None:
    _, _, stage = spread(tmp_path, 3)
    by_bytes, by_look = copies_by_bytes(stage), copies_by_look(stage, 0)
    numbers = by_bytes.images.numbers["mine"][:6]
    assert by_bytes.kinds[numbers].tolist() == [0] * 6
    assert by_look.kinds[numbers].tolist() == [0, 1, 2] * 2


def test_a_dataset_may_show_other_frames_than_the_blend(tmp_path: Path) -> None:
    blend = prepare(blend_of(tmp_path, "even:3", image={"frames": "first"})).blend
    assert blend.policy_for(blend.datasets[0]).frames == "even:3"
    assert blend.policy_for(replace(blend.datasets[0], frames=None)).frames == "first"

"""Images that were read are kept in files that another start uses, and that are never trusted more than their bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from tests.support import model_batches
from tests.support.tiny_models import Fed, Loaded, loaded, prompt
from tests.support.whole_sequences import whole_logits
from trainer.errors import TrainError
from trainer.inference.generate import Generator
from trainer.inference.image_files import ImageFiles, fingerprint_of
from trainer.inference.slots import States
from trainer.inference.state_cache import StateCache

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
record = pytest.fixture(scope="module")(loaded)
CPU = torch.device("cpu")


def states(seed: int, dtype: torch.dtype = torch.float32) -> States:
    tensors = torch.randn(4, 2, 5, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return States((tensors[0], tensors[1]), (tensors[2], tensors[3]))


def same(first: States | None, second: States) -> bool:
    assert first is not None
    return all(
        torch.equal(a, b) for a, b in zip((*first.keys, *first.values), (*second.keys, *second.values), strict=True)
    )


class Folder:
    """Files of one model, and the notes about them."""

    def __init__(self, folder: Path, fingerprint: str = "f" * 32, limit_bytes: int = 1 << 30) -> None:
        self.notes: list[str] = []
        self.files = ImageFiles(folder, fingerprint, limit_bytes=limit_bytes, device=CPU, note=self.notes.append)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_another_start_reads_what_was_written(tmp_path: Path, dtype: torch.dtype) -> None:
    Folder(tmp_path / "new").files.write(b"image", states(1, dtype))
    again = Folder(tmp_path / "new")
    assert same(again.files.read(b"image"), states(1, dtype))
    assert again.files.read(b"other") is None
    assert not again.notes


def test_files_of_another_model_are_not_read(tmp_path: Path) -> None:
    Folder(tmp_path, "a" * 32).files.write(b"image", states(1))
    assert Folder(tmp_path, "b" * 32).files.read(b"image") is None


def test_every_damaged_byte_is_noticed_and_the_file_is_removed(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.files.write(b"image", states(1))
    (path,) = tmp_path.iterdir()
    sound = path.read_bytes()
    for number in (0, 15, 16, 24, 40, len(sound) // 2, len(sound) - 1):
        damaged = bytearray(sound)
        damaged[number] ^= 1
        path.write_bytes(damaged)
        assert folder.files.read(b"image") is None
        assert not path.exists()
    for length in (0, 7, 16, len(sound) - 1):
        path.write_bytes(sound[:length])
        assert folder.files.read(b"image") is None
    assert len(folder.notes) == 11
    assert "is damaged and is removed" in folder.notes[0]


@pytest.mark.parametrize(("model", "image"), [("f" * 32, b"other"), ("a" * 32, b"image")])
def test_the_content_of_another_image_or_model_is_not_used(tmp_path: Path, model: str, image: bytes) -> None:
    folder = Folder(tmp_path)
    folder.files.write(b"image", states(1))
    (path,) = tmp_path.iterdir()
    other = Folder(tmp_path, model)
    other.files.write(image, states(2))
    (other_path,) = {*tmp_path.iterdir()} - {path}
    path.write_bytes(other_path.read_bytes())
    assert folder.files.read(b"image") is None
    assert "is damaged and is removed" in folder.notes[0]
    assert same(other.files.read(image), states(2))


def test_a_damaged_file_that_may_not_be_removed_is_only_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    folder = Folder(tmp_path)
    folder.files.write(b"image", states(1))
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"")
    monkeypatch.setattr(Path, "unlink", refuse)
    assert folder.files.read(b"image") is None
    monkeypatch.setattr(Path, "open", refuse)
    folder.files.write(b"other", states(1))
    assert [note.partition(": ")[2][:10] for note in folder.notes] == ["is damaged", "no more ima"[:10]]


def test_a_file_that_another_process_removes_meanwhile_stays_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Path.read_bytes

    def remove_after(path: Path) -> bytes:
        data = plain(path)
        path.unlink()
        return data

    folder = Folder(tmp_path)
    folder.files.write(b"image", states(1))
    monkeypatch.setattr(Path, "read_bytes", remove_after)
    assert same(folder.files.read(b"image"), states(1))
    assert [*tmp_path.iterdir()] == []


def test_the_folder_stays_within_its_limit_and_loses_first_what_was_used_longest_ago(tmp_path: Path) -> None:
    Folder(tmp_path).files.write(b"0", states(0))
    (path,) = tmp_path.iterdir()
    size = path.stat().st_size
    folder = Folder(tmp_path, limit_bytes=3 * size)
    for number in range(1, 3):
        folder.files.write(b"%d" % number, states(number))
    for number, name in enumerate((b"0", b"1", b"2")):
        file = tmp_path / f"{'f' * 32}-{name.hex()}.states"
        os.utime(file, (number, number))
    assert folder.files.read(b"0") is not None  # now the latest
    folder.files.write(b"3", states(3))
    assert [folder.files.read(b"%d" % number) is not None for number in range(4)] == [True, False, True, True]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 3 * size
    Folder(tmp_path, limit_bytes=size)
    assert len([*tmp_path.iterdir()]) == 1


def listings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Gets an entry for each listing of a folder from now on."""
    plain, listed = os.scandir, list[object]()

    def counted(path: Path) -> Any:
        listed.append(path)
        return plain(path)

    monkeypatch.setattr(os, "scandir", counted)
    return listed


def sizes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def test_a_folder_is_listed_a_few_times_for_many_files_and_stays_within_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Folder(tmp_path).files.write(b"first", states(0))
    limit_bytes = 64 * sizes(tmp_path)
    folder, listed = Folder(tmp_path, limit_bytes=limit_bytes), listings(monkeypatch)
    for number in range(200):
        folder.files.write(b"%03d" % number, states(number))
        assert sizes(tmp_path) <= limit_bytes
    assert len(listed) <= 200 / 4 + 1  # a sixteenth of the limit is room for four files
    assert sizes(tmp_path) > limit_bytes * 0.9
    assert same(folder.files.read(b"199"), states(199))
    assert folder.files.read(b"100") is None


def test_processes_that_share_a_folder_exceed_its_limit_by_little_and_lose_what_both_used_longest_ago(
    tmp_path: Path,
) -> None:
    Folder(tmp_path).files.write(b"first", states(0))
    limit_bytes = 64 * sizes(tmp_path)
    pair = [Folder(tmp_path, letter * 32, limit_bytes) for letter in "ab"]
    largest = 0
    for number in range(150):
        for folder in pair:
            folder.files.write(b"%03d" % number, states(number))
        largest = max(largest, sizes(tmp_path))
    assert limit_bytes * 0.9 < largest <= limit_bytes * 17 / 16
    for folder in pair:
        kept = [folder.files.read(b"%03d" % number) is not None for number in range(150)]
        assert kept == sorted(kept)  # the latest
        assert sum(kept) >= 25
    assert not pair[0].notes + pair[1].notes


def test_room_that_the_user_makes_by_hand_is_noticed(tmp_path: Path) -> None:
    Folder(tmp_path).files.write(b"first", states(0))
    folder = Folder(tmp_path, limit_bytes=4 * sizes(tmp_path))
    for number in range(4):
        folder.files.write(b"%d" % number, states(number))
    for path in tmp_path.iterdir():
        path.unlink()
    for number in range(4):
        folder.files.write(b"%d" % number, states(number))
    assert all(folder.files.read(b"%d" % number) is not None for number in range(4))


def test_what_others_have_in_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    Folder(tmp_path, limit_bytes=0).files.write(b"0", states(0))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_that_a_killed_process_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    old, new = (tmp_path / f".f-{name}.states.0011.partial" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    Folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [new.name]


def test_a_disk_that_takes_no_more_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    folder.files.write(b"0", states(0))
    folder.files.write(b"1", states(1))
    assert [*tmp_path.iterdir()] == []
    assert len(folder.notes) == 1
    assert "No space left" in folder.notes[0]


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match=r"file: images cannot be kept there: .*; expected a folder"):
        Folder(tmp_path / "file")


def test_the_fingerprint_follows_every_weight_and_the_form_of_the_pixels() -> None:
    record = loaded()
    prints = {fingerprint_of(record.model)}
    assert prints == {fingerprint_of(loaded().model)}
    for parameter in (next(record.model.encoder.parameters()), [*record.model.decoder.base_model.parameters()][-1]):
        parameter.data.view(-1)[-1] += 1
        prints.add(fingerprint_of(record.model))
    prints |= {fingerprint_of(record.model.double()), fingerprint_of(loaded("tiny_llama", "causal").model)}
    assert len(prints) == 5


def test_a_known_image_costs_nothing_after_a_restart_and_gives_the_same_logits(tmp_path: Path, record: Loaded) -> None:
    image_id = record.chat_tokenizer.tokenizer.image_id
    generator = Generator(record.model, record.chat_tokenizer)
    shown = prompt(record, [400, image_id, 401])
    for images in (1, 0):
        cache = StateCache(1 << 30)
        rows = generator.plan.open(1, cache)
        cache.files = Folder(tmp_path, fingerprint_of(record.model)).files
        with Fed(record) as fed:
            (read,) = [read for read in rows.join(shown) if read is not None]
        assert sum(fed.images) == images
        torch.testing.assert_close(read.logits_V, whole_logits(record.model, shown), rtol=1e-5, atol=1e-5)
        assert (cache.hits, cache.misses) == (1 - images, images)

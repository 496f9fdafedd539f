"""Names that are not UTF-8: whole files are refused before work starts, single records are rejects with a reason."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from preprocess.errors import ConfigError
from tests.support.small_blends import build, chat_record, jpeg, rejects_of, write_blend, write_chat, write_images

pytestmark = [
    pytest.mark.usefixtures("builds_in_this_process"),
    pytest.mark.skipif(sys.platform != "linux", reason="file systems of macOS have UTF-8 names alone"),
]

ODD = os.fsdecode(b"na\xefve")
SHOWN = "na\\udcefve"


def blend_of(folder: Path, **dataset: Any) -> Path:
    entry = {"name": "mine", "adapter": "chat", "root": "mine", **dataset}
    return write_blend(folder / "blend.yaml", [entry], limits={"max_reject_share": 0.9})


def rejects(folder: Path, **dataset: Any) -> list[tuple[str, str, str]]:
    """(record, reason, detail) of each reject; the other record is in the build."""
    report = build(blend_of(folder, **dataset), out=folder / "out")
    assert report.datasets["mine"].records == 2
    found = rejects_of(folder / "out")
    assert len(found) == 1
    return [(reject["record"], reject["reason"], reject["detail"]) for reject in found]


@pytest.mark.parametrize("place", ["annotations", "root", "images"])
def test_an_input_is_refused_before_work_starts(tmp_path: Path, place: str) -> None:
    root = tmp_path / "mine"
    names = write_images(root / "images", 2)
    write_chat(root, [chat_record(0, images=names[:1])])
    match place:
        case "annotations":
            (root / "chat.jsonl").rename(root / f"{ODD}.jsonl")
            blend = blend_of(tmp_path, images="images")
        case "images":
            (root / "images").rename(root / ODD)
            blend = blend_of(tmp_path, images="na*")
        case _:
            root.rename(tmp_path / ODD)
            blend = blend_of(tmp_path, root=".", annotations="*/chat.jsonl", images="*/images")
    with pytest.raises(ConfigError, match=r"datasets\.0 \(mine\): .*na\\udcefve.*: the name is not UTF-8; rename it"):
        build(blend, out=tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_build_folder_and_the_folder_of_a_blend_are_refused(tmp_path: Path) -> None:
    write_chat(tmp_path / ODD / "mine", [chat_record(0)])
    with pytest.raises(ConfigError, match="the name is not UTF-8; rename it"):
        build(blend_of(tmp_path / ODD), out=tmp_path / "out")
    write_chat(tmp_path / "mine", [chat_record(0)])
    with pytest.raises(ConfigError, match="the name is not UTF-8; rename it"):
        build(blend_of(tmp_path), out=tmp_path / ODD / "out")
    assert not (tmp_path / ODD / "out").exists()


def test_a_sample_in_a_folder_is_a_reject_with_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "captions"
    folder.mkdir(parents=True)
    for number, stem in enumerate((ODD, "sound")):
        (folder / f"{stem}.jpg").write_bytes(jpeg(number))
        (folder / f"{stem}.txt").write_text("A caption.")
    found = rejects(tmp_path, annotations="captions", images="captions", prompt="Describe it.")
    assert found == [(SHOWN, "bad_text", f"the name {SHOWN} is not UTF-8")]


def test_a_name_in_a_table_of_text_is_a_reject(tmp_path: Path) -> None:
    write_images(tmp_path / "mine", 2)
    (tmp_path / "mine/0.jpg").rename(tmp_path / "mine" / f"{ODD}.jpg")
    (tmp_path / "mine/a.csv").write_bytes(b"image,question,answer\nna\xefve.jpg,Q?,A\n1.jpg,Q?,A\n")
    [(_, reason, detail)] = rejects(tmp_path, annotations="a.csv")
    assert reason == "bad_text"
    assert SHOWN in detail


def test_a_sample_in_a_tar_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with tarfile.open(tmp_path / "mine/a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for stem in ("naïve", "sound"):
            for extension, data in (("jpg", jpeg(1)), ("txt", b"A caption.")):
                member = tarfile.TarInfo(f"{stem}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    [(_, reason, detail)] = rejects(tmp_path, annotations="a.tar", prompt="Describe it.")
    assert (reason, detail[:37]) == ("bad_text", "a text or a name of it is not UTF-8 (")


def test_members_of_archives_are_no_hindrance_for_others(tmp_path: Path) -> None:
    """Nothing can name them, since records are Unicode text."""
    write_chat(tmp_path / "mine", [chat_record(number, images=[f"{number}.jpg"]) for number in range(2)])
    with zipfile.ZipFile(tmp_path / "mine/a.zip", "w") as archive:
        for name in ("0.jpg", "1.jpg", "naXve.jpg"):
            archive.writestr(name, jpeg(len(name)))
    path = tmp_path / "mine/a.zip"
    path.write_bytes(path.read_bytes().replace(b"naXve", b"na\xefve"))
    assert not build(blend_of(tmp_path, images="a.zip"), out=tmp_path / "out").datasets["mine"].rejects

"""A full disk is reported with the folder, what is free there and what is needed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shards import files
from shards.files import disk_named, replace_file


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_names_its_folder_and_the_bytes_that_are_free_and_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "flush_and_close", full)
    with pytest.raises(OSError, match=r"No space left on device \([\d,]+ bytes free, 1,234 needed\)") as error:
        replace_file(tmp_path / "a", bytes(1234))
    assert error.value.filename == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_need_that_is_unknown_is_left_out(tmp_path: Path, number: int) -> None:
    with pytest.raises(OSError, match=r"\([\d,]+ bytes free\)") as error, disk_named(tmp_path):
        raise OSError(number, os.strerror(number))
    assert error.value.errno == number


def test_other_errors_and_named_ones_pass_as_they_are(tmp_path: Path) -> None:
    for raised in (OSError(errno.EIO, "x"), OSError(errno.ENOSPC, "x", "name"), OSError("x")):
        with pytest.raises(OSError) as error, disk_named(tmp_path):  # noqa: PT011
            raise raised
        assert error.value is raised


def test_a_folder_with_the_name_of_a_file_is_named_and_nothing_else_is_left(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError) as error:
        replace_file(tmp_path / "a", b"content")
    assert error.value.filename == str(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_not_there_is_reported_with_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        replace_file(tmp_path / "none/a", b"content")
    assert error.value.filename == str(tmp_path / "none/a")

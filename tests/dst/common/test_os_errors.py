"""An OSError that reaches the user names a place and a next step."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dst.common.os_errors import os_error_text


def test_a_rename_onto_a_folder_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("x")
    (tmp_path / "name").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        os.replace(tmp_path / "new", tmp_path / "name")
    expected = f"{tmp_path / 'name'}: Is a directory; a file is expected there: move the folder away"
    assert os_error_text(caught.value) == expected


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            OSError(errno.EROFS, "Read-only file system", b"/data"),
            "/data: Read-only file system; make the file system ",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "reading or writing: No space left on device; free some "),
        (OSError(errno.EIO, "Input/output error", "a.tar"), "a.tar: Input/output error"),
        (OSError("in a library"), "reading or writing: in a library"),
    ],
)
def test_the_place_comes_first_and_a_known_number_has_a_next_step(error: OSError, text: str) -> None:
    assert os_error_text(error).startswith(text)
    assert os_error_text(error, next_step="x").endswith("; x") == (error.errno in (errno.EIO, None))

"""The first bytes of a file say what it is; its name does not, since users rename files.

Rule: a file that stands for another one, such as a Git LFS pointer, is named as that and never called broken.
"""

from __future__ import annotations

from pathlib import Path

from preprocess.containers.remote_path import is_remote

HEAD_BYTES = 1 << 10
"""How much of a file the marks need"""

PARQUET = b"PAR1"
ARROW_FILE = b"ARROW1"
ARROW_STREAM = b"\xff\xff\xff\xff"
ZIP = (b"PK\3\4", b"PK\5\6")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LFS = b"version https://git-lfs.github.com/spec/"
_TAR, _TAR_OFFSET = b"ustar", 257
LFS_ADVICE = "is a Git LFS pointer, not the file itself; run `git lfs pull` where it was cloned"


def is_lfs_pointer(head: bytes) -> bool:
    return head.startswith(_LFS)


def is_tar(head: bytes) -> bool:
    return head.startswith(_TAR, _TAR_OFFSET)


def is_arrow(head: bytes) -> bool:
    """An Arrow IPC file, or a stream: what save_to_disk of `datasets` writes."""
    return head.startswith((ARROW_FILE, ARROW_STREAM))


def compression(head: bytes) -> str | None:
    """gzip, bzip2, xz or zstd; None for a file that is not compressed."""
    return next((name for mark, name in COMPRESSED.items() if head.startswith(mark)), None)


def may_hold_images(path: Path) -> bool:
    """Whether records may have images next to them: in Parquet, Arrow, a tar or a folder. False if it is unreadable.

    Raises OSError for a URL that does not answer.
    """
    try:
        if not path.is_file():
            return path.is_dir()
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        if is_remote(path):  # a network that fails says nothing about the file
            raise
        return False
    return head.startswith(PARQUET) or is_arrow(head) or is_tar(head)

"""Other names for the conversations of a piece whose ids an earlier piece has, with `duplicate_ids: keep`.

Rule: the piece comes out as if it was read again with these ids taken, in a tenth of the time. A record that claims an
id tries names in turn (parsing/identities.py). Those before the one that it got are taken whatever other pieces have,
so it resumes from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from preprocess.adapters.parsing.identities import id_digest, next_name
from preprocess.compiler.spool_copies import replace_lines

_ID = re.compile(rb'\[("(?:[^"\\]|\\.)*")')

Numbers = npt.NDArray[np.uint64]


class DroppedRecord(Exception):  # noqa: N818 - what the reader of a piece decides about
    """A record that must have another name was dropped after it claimed one, so its name is not known."""


def rename(piece: Path, folder: Path, claimed: Numbers, records: Numbers, taken: Numbers) -> Numbers:
    """Write the spool of a piece into a folder, with other ids. Returns the digests of the ids that are now claimed.

    claimed: the digests of the piece, in order; records: the number of each one's record. Raises DroppedRecord.
    """
    renamer = _Renamer(claimed, records, taken)
    with (piece / "records.jsonl").open("rb") as lines:
        replace_lines(folder, piece, renamer.lines(lines))
    renamer.drop_rest()
    return np.array(renamer.claimed, np.uint64)


class _Renamer:
    def __init__(self, claimed: Numbers, records: Numbers, taken: Numbers) -> None:
        self.claimed: list[int] = []
        self._seen = {*taken.tolist()}
        self._claims = iter(zip(claimed.tolist(), records.tolist(), strict=True))

    def lines(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        for line in lines:
            match = _ID.match(line)
            assert match is not None
            name = orjson.loads(match[1])
            digest = id_digest(name)
            record = self._until(digest)
            if digest in self._seen:
                while digest in self._seen:
                    name = next_name(name, record)
                    digest = id_digest(name)
                line = b"[" + orjson.dumps(name) + line[match.end() :]
            self._claim(digest)
            yield line

    def drop_rest(self) -> None:
        for digest, _ in self._claims:
            self._drop(digest)

    def _until(self, wanted: int) -> int:
        """The number of the record with this claim. Those before it, which no conversation has, keep theirs."""
        for digest, record in self._claims:
            if digest == wanted:
                return int(record)
            self._drop(digest)
        raise DroppedRecord

    def _drop(self, digest: int) -> None:
        if digest in self._seen:
            raise DroppedRecord
        self._claim(digest)

    def _claim(self, digest: int) -> None:
        self._seen.add(digest)
        self.claimed.append(digest)

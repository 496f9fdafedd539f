"""What `dedupe` and `decontaminate` compare of a record's texts: a digest of all of them, and its known questions.

Rule: as fingerprints.py; a spool never changes, so its name in the cache covers the texts.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from preprocess.compiler.array_files import read_array, write_array
from preprocess.compiler.fingerprints import FOLDER, FingerprintStage
from preprocess.compiler.ingest import content_key
from preprocess.compiler.spool import Spool
from preprocess.conversation import Conversation
from preprocess.dedupe.texts import QuestionIndex, normalised
from shards.files import replace_file

VERSION = 1
"""Raise it with every change that can alter a result; then those of earlier builds are computed again"""

RECORD_TEXT = np.dtype([("digest", "<u8", (2,)), ("question", "<i8")])
RecordTexts = npt.NDArray[np.void]
"""One RECORD_TEXT for each of N rows, [N]; question: the number of a known question that the record repeats, or -1"""

_TASK_ROWS = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTask:
    """The rows of a spool from `start` to before `stop`. questions: the file of a QuestionIndex, if there is one."""

    spool: Path
    cache: Path
    start: int
    stop: int
    questions: Path | None
    key: str

    @property
    def marker(self) -> Path:
        """The file of its result."""
        return self.cache / FOLDER / f"{self.key[:32]}.npy"


def record_texts(stage: FingerprintStage, questions: QuestionIndex | None = None) -> dict[str, RecordTexts]:
    """Dataset -> one RECORD_TEXT for each of its rows."""
    spools, cache = stage.spools, stage.cache
    index = _write_index(questions, cache) if questions else None
    tasks = [
        TextTask(
            spool=spool.folder,
            cache=cache,
            start=start,
            stop=min(start + _TASK_ROWS, len(spool)),
            questions=index,
            key=content_key(
                {"version": VERSION, "spool": spool.folder.name, "start": start, "questions": index and index.name}
            ),
        )
        for spool in spools.values()
        for start in range(0, len(spool), _TASK_ROWS)
    ]
    stage.used.update(task.marker for task in tasks)
    stage.used.update([index] if index else [])
    parts = stage.run("comparing texts", run_texts, tasks, known=read_texts, weight=lambda task: task.stop - task.start)
    every = np.concatenate([np.zeros(0, RECORD_TEXT), *parts])
    return dict(zip(spools, np.split(every, np.cumsum([len(spool) for spool in spools.values()])[:-1]), strict=True))


def run_texts(task: TextTask) -> RecordTexts:
    """The task's results, also written to its marker."""
    spool = Spool(task.spool)
    index = _read_index(task.questions) if task.questions else None
    result = np.zeros(task.stop - task.start, RECORD_TEXT)
    for row in range(task.start, task.stop):
        conversation = spool[row]
        digest = text_digest(conversation)
        result[row - task.start]["digest"] = (digest >> 64, digest & 2**64 - 1)
        result[row - task.start]["question"] = index.match(questions_of(conversation)) if index else -1
    write_array(task.marker, result)
    return result


def read_texts(task: TextTask) -> RecordTexts | None:
    """The result of an earlier run of the same task, if there is one."""
    return read_array(task.marker, RECORD_TEXT, task.stop - task.start)


def text_digest(conversation: Conversation) -> int:
    """128 bits: roles, normalised texts, and where the images are between them, whichever images they are."""
    pieces = list(conversation.tools)
    for turn in conversation.turns:
        pieces += [
            "turn",
            turn.role,
            str(turn.trained),
            turn.tool_name,
            str(turn.tool_calls),
            normalised(turn.reasoning),
        ]
        pieces += [f"text {normalised(part)}" if isinstance(part, str) else "image" for part in turn.parts]
    return int(xxhash.xxh3_128_intdigest("\0".join(pieces).encode("utf-8")))


def questions_of(conversation: Conversation) -> list[str]:
    """The text of each user turn."""
    return [
        " ".join(part for part in turn.parts if isinstance(part, str))
        for turn in conversation.turns
        if turn.role == "user"
    ]


def _write_index(questions: QuestionIndex, cache: Path) -> Path:
    buffer = io.BytesIO()
    np.savez(buffer, hashes=questions.hashes, owners=questions.owners, sizes=np.array(questions.sizes, np.int64))
    digest = xxhash.xxh3_128(questions.hashes.tobytes())
    digest.update(questions.owners.tobytes())
    digest.update(np.array(questions.sizes).tobytes())
    path = cache / FOLDER / f"questions-{digest.hexdigest()}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, buffer.getvalue())
    return path


@lru_cache(maxsize=1)
def _read_index(path: Path) -> QuestionIndex:
    with np.load(path, allow_pickle=False) as arrays:
        return QuestionIndex(arrays["hashes"], arrays["owners"], arrays["sizes"].tolist())

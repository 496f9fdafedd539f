"""A build that is being looked at, by several threads and perhaps for days.

Rules: one reader at a time, since a split's open shards are not for several threads. A build that was replaced is
opened again by the next request; one that is gone is an error of that request, and the server stays up.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

import shards
from dst import Template, load_tokenizer
from dst.errors import TemplateError
from preprocess.viewer.rejects import Rejects
from preprocess.viewer.selection import Filters, Selection, counts_of
from preprocess.viewer.sequences import PackedSettings, SequencePager
from preprocess.viewer.source_records import SourceRecords
from preprocess.viewer.turns import Opener, openers_of
from shards import ShardError
from shards.format.manifest_file import NAME

_CHECK_EVERY_S = 2.0


class OpenedBuild:
    """What pages need of a build. Use it inside `OpenedBuilds.reading`."""

    def __init__(self, location: str | Path) -> None:
        """Raises ShardError if there is no finished build, or of another version."""
        self.location = location
        self.build = shards.open(location)
        self.tokenizer = load_tokenizer(self.build.tokenizer_folder())
        self.openers = lru_cache(self._openers)
        self.selection = lru_cache(maxsize=8)(self._selection)  # a sorted order is looked for once
        self.sequences = lru_cache(maxsize=4)(self._sequences)
        self.source_records = lru_cache(self._source_records)

    def _openers(self, dataset: str) -> tuple[Opener, ...]:
        """The words that open the turns of a dataset's samples."""
        manifest = self.build.manifest
        try:
            template = Template(manifest.config.template, manifest.datasets[dataset].template)
        except TemplateError:  # written by another version of dsvl; the sample's text does not need it
            return ()
        return openers_of(template, bos_token=manifest.tokenizer.bos_token, eos_token=manifest.tokenizer.eos_token)

    def _selection(self, filters: Filters) -> Selection:
        return Selection(self.build, self.tokenizer, filters)

    def _sequences(self, settings: PackedSettings) -> SequencePager:
        return SequencePager(self.build, settings)

    def _source_records(self, bases: tuple[Path, ...]) -> SourceRecords:
        return SourceRecords(self.build.manifest, bases)

    def images_of(self, numbers: Sequence[int]) -> list[int]:
        """How many images samples have, by the indexes."""
        return [int(images) for images in counts_of(self.build, np.array(numbers, np.int64))[1]]

    @cached_property
    def rejects(self) -> Rejects:
        """Raises ShardError if the file is not the pinned one."""
        return Rejects(self.build)

    @cached_property
    def num_samples(self) -> int:
        return len(self.build)


class OpenedBuilds:
    """The newest build at a location."""

    def __init__(self, location: str | Path) -> None:
        """Raises ShardError."""
        self._location = location
        self._lock = threading.Lock()
        self._opened = OpenedBuild(location)
        self._manifest = self._opened.build.store.read(NAME)
        self._checked = time.monotonic()

    @contextmanager
    def reading(self) -> Iterator[OpenedBuild]:
        """The build, for one thread. Raises ShardError if it is gone or cannot be read."""
        with self._lock:
            if time.monotonic() - self._checked > _CHECK_EVERY_S:
                self._reopen_if_replaced()
            try:
                yield self._opened
            except ShardError:
                self._checked = -math.inf  # perhaps the build was replaced; the next request looks
                raise

    def _reopen_if_replaced(self) -> None:
        try:
            manifest = self._opened.build.store.read(NAME)
        except OSError as error:
            where = self._opened.build.store.name(NAME)
            raise ShardError(f"{where}: the build is gone ({error}); build it again, and reload this page") from None
        if manifest != self._manifest:
            self._opened, self._manifest = OpenedBuild(self._location), manifest
        self._checked = time.monotonic()

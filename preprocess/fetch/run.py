"""`dsvl-prep fetch`: every URL that a blend's records name as an image, into the folder where builds find it.

    fetch_blend(Path("blend.yaml"), progress=Bar())

Rule: what is finished is kept, so the same command resumes after any interruption, and a second run asks again only for
what was unreachable. Memory holds a page of URLs for each host that is being asked, never the list.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from dst.common.progress import Advance, Progress, Silent
from preprocess.adapters.lookup import read_records
from preprocess.adapters.parsing.fields import is_text
from preprocess.blend.config import Blend
from preprocess.blend.inputs import find_inputs
from preprocess.blend.load import load_blend
from preprocess.blend.resolve import fetched_folder, request_of
from preprocess.conversation import Conversation, is_url
from preprocess.errors import ConfigError
from preprocess.fetch.ledger import Ledger, Outcome, open_ledger
from preprocess.fetch.report import MISSING, FetchReport
from shards.files import disk_named, file_sha256, flush_and_close, partial_path

_AGAIN = ("gone", "refused", "bad_redirect", "private_address", "too_large", "not_image", "opted_out")


def fetch_blend(
    path: Path,
    *,
    settings: Sequence[str] = (),
    allow_private: bool = False,
    again: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
) -> FetchReport:
    """Download what is missing, and write `missing.jsonl`: url, state and detail of each URL without a file.

    allow_private: connect to addresses of private networks too. again: ask again for what failed for good. verify:
    compare every file with its digest, not only its size; a damaged one is downloaded again. Raises ConfigError, or
    DataError if an annotation file or the folder cannot be used.
    """
    _check_installed()
    blend = load_blend(path, settings)
    base = path.absolute().parent
    folder = fetched_folder(blend, base)
    progress = progress or Silent()
    from preprocess.fetch.download_all import download_all  # aiohttp is loaded for this command alone

    with open_ledger(folder) as ledger:
        with progress.step("reading", len(blend.datasets)) as advance:
            ledger.add(_urls(blend, base, advance))
        ledger.retry(("unreachable", *(_AGAIN if again else ("private_address",) if allow_private else ())))
        _forget_damaged(ledger, verify=verify, progress=progress)
        ledger.commit()
        before = ledger.counts()
        with progress.step("fetching", before.get("waiting", 0)) as advance:
            asyncio.run(download_all(ledger, blend.fetch, allow_private=allow_private, advance=advance))
        ledger.commit()
        _write_missing(folder, ledger.missing())
        states = ledger.counts()
        new = states.get("fetched", 0) - before.get("fetched", 0)
        return FetchReport(folder=folder, states=states, new=new, size_bytes=ledger.stored_bytes())


def _urls(blend: Blend, base: Path, advance: Advance) -> Iterator[str]:
    """The URLs of every image that a build would read, in the order of the records, repeats included."""
    inputs = find_inputs(blend, base, need_images=False)
    for dataset in blend.datasets:
        request = request_of(blend, dataset, inputs[dataset.name])
        for item in islice(read_records(dataset.adapter, request), dataset.first):
            if isinstance(item, Conversation):
                yield from (image.name for image in item.images if is_url(image.name) and is_text(image.name))
        advance(1)


def _forget_damaged(ledger: Ledger, *, verify: bool, progress: Progress) -> None:
    """Files that are gone or changed wait to be downloaded again."""
    with progress.step("checking", ledger.counts().get("fetched", 0)) as advance:
        for stored in ledger.stored():
            try:
                sound = stored.path.stat().st_size == stored.size
                sound = sound and (not verify or bytes.fromhex(file_sha256(stored.path)) == stored.sha256)
            except FileNotFoundError:
                sound = False
            if not sound:
                ledger.record(stored.key, Outcome(state="waiting"))
            advance(1)


def _write_missing(folder: Path, rows: Iterator[tuple[str, str, str]]) -> None:
    """One JSON object a line."""
    partial = partial_path(folder / MISSING)
    with disk_named(folder), partial.open("w", encoding="utf-8") as file:
        for url, state, detail in rows:
            file.write(json.dumps({"url": url, "state": state, "detail": detail}) + "\n")
        flush_and_close(file)
    os.replace(partial, folder / MISSING)


def _check_installed() -> None:
    if importlib.util.find_spec("aiohttp") is None:
        raise ConfigError(["dsvl-prep fetch: aiohttp is not installed; pip install 'dsvl[remote]'"])

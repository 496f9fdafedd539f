"""What tests of dsvl-prep fetch share: a blend of URLs, a fast fetch, and what it reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preprocess.compiler import opened, task
from preprocess.fetch.report import FetchReport
from preprocess.fetch.run import fetch_blend
from preprocess.images.fetched import image_file, url_key
from tests.support.small_blends import chat_blend, chat_record

FAST = ("fetch.rate=10000", "fetch.timeout_s=0.2", "fetch.tries=2")


def blend_of(folder: Path, urls: list[str], **settings: Any) -> Path:
    return chat_blend(folder, [chat_record(number, images=[url]) for number, url in enumerate(urls)], **settings)


def fetch(blend: Path, *settings: str, **options: Any) -> FetchReport:
    for cached in (opened._open, task._open):  # a build in this process keeps its stores open, and with them the folder
        cached.cache_clear()
    return fetch_blend(blend, settings=(*FAST, *settings), **{"allow_private": True, **options})


def missing(report: FetchReport) -> dict[str, tuple[str, str]]:
    """The path of each URL without a file -> state and detail."""
    rows = map(json.loads, (report.folder / "missing.jsonl").read_text(encoding="utf-8").splitlines())
    return {"/" + row["url"].split("/", 3)[-1]: (row["state"], row["detail"]) for row in rows}


def file_of(report: FetchReport, url: str, extension: str = "jpg") -> Path:
    return image_file(report.folder, url_key(url), extension)

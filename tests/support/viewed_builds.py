"""A build to look at in the viewer, and requests to its app."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dst.common.web_server import own_hosts
from preprocess.viewer.app import make_app
from preprocess.viewer.opened_build import OpenedBuilds
from tests.support.asgi_client import Answer, get
from tests.support.small_blends import build, chat_blend, chat_record, write_images

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202eabc"
LONG_ANSWER = "word " * 9000
Ask = Callable[..., Answer]


def viewed_records() -> list[dict[str, Any]]:
    """Twenty-four samples, among them a hostile one, a long one, one of forty images; and three rejects."""
    records = [chat_record(number, images=[f"{number % 5}.jpg"], rounds=1 + number % 3) for number in range(24)]
    records[3]["messages"][1]["content"] = HOSTILE
    records[4]["messages"][1]["content"] = LONG_ANSWER
    records[5] = chat_record(5, images=[f"{number % 5}.jpg" for number in range(40)])
    records[6]["messages"][0]["content"] += " שלום עולם e\u0301\u0323 ﷽"
    records[7]["messages"].append({"role": "user", "content": "A question without an answer?"})
    return [
        *records,
        chat_record(90, images=["absent.jpg"]),
        chat_record(91, images=[HOSTILE[:20] + ".jpg"]),
        {"id": "r92", "messages": []},
    ]


def make_viewed(folder: Path) -> Path:
    """The build in `folder`/build."""
    write_images(folder / "mine", 5)
    limits = {"max_length": 60_000, "max_images": 40, "max_reject_share": 1.0}
    build(chat_blend(folder, viewed_records(), limits=limits))
    return folder


def app_of(folder: Path, location: str | Path | None = None) -> Ask:
    """Requests to the app of `folder`/build, or of a build elsewhere whose blend file is in the folder."""
    app = make_app(OpenedBuilds(location or folder / "build"), is_own=own_hosts("127.0.0.1"), bases=(folder,))

    def ask(address: str, **options: Any) -> Answer:
        return get(app, address, **options)

    return ask

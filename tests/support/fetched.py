"""The folder that `dsvl-prep fetch` leaves, without a server."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from preprocess.fetch.ledger import Outcome, open_ledger
from preprocess.images.fetched import image_file, url_key


def fetched_images(folder: Path, images: Mapping[str, bytes]) -> None:
    """images: URL -> the bytes of a JPEG."""
    with open_ledger(folder) as ledger:
        ledger.add(images)
        for url, data in images.items():
            path = image_file(folder, url_key(url), "jpg")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            digest = hashlib.sha256(data).digest()
            ledger.record(url_key(url), Outcome(state="fetched", extension="jpg", size=len(data), sha256=digest))

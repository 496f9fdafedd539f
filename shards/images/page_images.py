"""Images inside pages of one file: a small JPEG as a data URL, or the reason why there is none."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

from dst.errors import DsvlError
from shards.images.thumbnails import thumbnail


@dataclass(frozen=True, slots=True, kw_only=True)
class PageImage:
    """source: a data URL; width, height: in pixels. problem: why it cannot be shown; then the others are empty."""

    name: str
    source: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


def page_image(name: str, read: Callable[[], bytes], side: int) -> PageImage:
    """An image of at most side x side pixels. What `read` or decoding raises becomes its problem."""
    try:
        small, width, height = thumbnail(read(), side)
    except DsvlError as error:
        return PageImage(name=name, problem=str(error))
    except OSError as error:
        return PageImage(name=name, problem=error.strerror or str(error))
    source = f"data:image/jpeg;base64,{base64.b64encode(small).decode()}"
    return PageImage(name=name, source=source, width=width, height=height)

"""Why a picture cannot be used: the one error that image stores and image checks raise."""

from __future__ import annotations


class ImageError(Exception):
    """`reason` is a name of conversation.REASONS; `detail` says which image, what was got and what was wanted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both as arguments, so that the error survives pickling between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

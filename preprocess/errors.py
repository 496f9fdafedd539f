"""What can be wrong with a dataset: whole files end the command, single records become rejects."""

from dst.errors import ConfigError, DsvlError

__all__ = ["ConfigError", "DataError", "DsvlError", "RejectError"]


class DataError(DsvlError):
    """A dataset file or a build cannot be used as a whole, or too many of its records were rejected.

    Example: llava/detail_23k.json: cannot be read (No such file or directory)
    What to do: correct or download the file that the text names, and run the command again; finished work is kept.
    """


class RejectError(DsvlError):
    """A record, conversation or image cannot become part of a sample.

    Inside the compiler only: it becomes a line of rejects.jsonl. `reason` is a name from docs/rejects.md; `detail` says
    which value, what was got and what was expected.

    Example: wrong_type: question is 7; ...
    What to do: see docs/rejects.md; too many rejects fail the build (limits.max_reject_share).
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both as arguments, so that the error survives pickling between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

"""What became of the tries of one kind of damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dst.errors import DsvlError


@dataclass(slots=True)
class Outcomes:
    """losses: a line for each try that was lost."""

    kind: str
    tried: int = 0
    losses: list[str] = field(default_factory=list)

    @property
    def survived(self) -> int:
        return self.tried - len(self.losses)

    def count(self, name: str, loss: str | None) -> None:
        """One more try. loss: why it is lost; None if it survived."""
        self.tried += 1
        if loss is not None:
            self.losses.append(f"{self.kind}, {name}: {loss}")


def loss_of(work: Callable[[], str | None]) -> str | None:
    """What `work` says is lost, or the exception that no user should see. An error of one line is not a loss."""
    try:
        return work()
    except (DsvlError, OSError) as error:
        return f"an error of several lines: {error}" if "\n" in str(error) else None
    except BaseException as error:  # a panic of a library in another language is not an Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"

"""A goal that was set before the work began, and what a run got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    what: str
    got: float
    expected: float
    at_least: bool = False
    """else at most"""
    unit: str = "x"
    """x for a ratio, % for a share"""

    @property
    def met(self) -> bool:
        """Never by NaN."""
        return self.got >= self.expected if self.at_least else self.got <= self.expected

    def row(self) -> str:
        bound = "at least" if self.at_least else "at most"
        return f"| {self.what} | {self._text(self.got)} | {bound} {self._text(self.expected)} | {self._verdict()} |"

    def _text(self, value: float) -> str:
        return f"{value:.1%}" if self.unit == "%" else f"{value:.2f}x"

    def _verdict(self) -> str:
        return "met" if self.met else "**missed**"


def print_goals(goals: Sequence[Goal]) -> None:
    print("\n| against what was expected | got | expected | |\n|---|---|---|---|")
    for goal in goals:
        print(goal.row())

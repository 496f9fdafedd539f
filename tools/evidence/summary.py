"""Means over the seeds of a setting, with intervals."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from tools.evidence.settings import ATTENTIONS, PROJECTORS

SETTINGS = [(attention, projector) for attention in ATTENTIONS for projector in PROJECTORS]
LOSSES = {"captions": "captions", "questions": "questions"}
"""Dataset -> its title"""


def of_setting(results: dict[str, Any], attention: str, projector: str) -> list[dict[str, Any]]:
    """The runs of all seeds."""
    return [run for run in results["runs"] if (run["attention"], run["projector"]) == (attention, projector)]


def row(run: dict[str, Any], dataset: str, measure: str) -> dict[str, Any]:
    """What `eval --blind` says of a measure."""
    rows: list[dict[str, Any]] = run["blind"]
    return next(each for each in rows if (each["dataset"], each["measure"]) == (dataset, measure))


def pooled(runs: list[dict[str, Any]], dataset: str, measure: str, shown: str) -> tuple[float, float]:
    """Mean over seeds of the difference to the right images, and half of its 95% interval.

    All seeds are measured on the same held-out images, so what the images add to the error is common to them. The mean
    of the margins is taken, which is no smaller than the margin of the mean.
    """
    wrong = [row(run, dataset, measure)[shown] for run in runs]
    return fmean(each["difference"] for each in wrong), fmean(each["margin"] or 0.0 for each in wrong)

"""Progress of long commands: nothing for programs, a bar for people, and lines for the logs of jobs."""

from __future__ import annotations

import pytest

from dst.common import progress
from dst.common.progress import Bar, Silent


def test_a_log_gets_a_line_with_the_tasks_at_most_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: clock[0])
    bar = Bar()
    with bar.step("compiling", 5000) as advance:
        bar.tasks(4, 12, 0)
        advance(1000)
        clock[0] += progress.LINE_EVERY_S
        bar.tasks(3, 10, 2)
        advance(500)
        advance(500)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "of 5,000" in line] == [
        "compiling: 1,500 of 5,000; 3 tasks running, 10 waiting, 2 failed"
    ]


def test_a_stage_without_tasks_says_nothing_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    bar = Bar()
    with bar.step("reading", 2) as advance:
        bar.tasks(1, 1, 0)
    with bar.step("uploading", 8) as advance:
        advance(8)
    assert "uploading: 8 of 8\n" in capsys.readouterr().err


def test_tasks_outside_of_a_stage_are_left_out() -> None:
    Bar().tasks(1, 2, 3)
    Silent().tasks(1, 2, 3)

"""`dsvl-train report` shows runs next to each other, without torch."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from tests.support.run_folders import record, write_run
from trainer.cli import cli


def test_the_table_has_a_column_for_each_run_and_no_control_characters(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a[bold]\x1b[31m", [record(10, loss=1.5)])
    second = write_run(tmp_path / "b", [])
    done = CliRunner().invoke(cli, ["report", str(first), str(second)])
    assert done.exit_code == 0, done.output
    assert r"a[bold]\x1b[31m" in done.stdout
    assert "\x1b" not in done.stdout
    assert "1.5000" in done.stdout
    assert "b: no record yet" in done.stdout

"""Buckets that fail to answer: asked for once, however many datasets they hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocess.blend.inputs import find_inputs
from preprocess.blend.load import load_blend
from preprocess.errors import ConfigError
from tests.support.remote_builds import Flaky, busy
from tests.support.remote_inputs import put
from tests.support.small_blends import chat_record, write_blend, write_chat


def test_a_bucket_that_fails_is_asked_for_one_dataset_and_all_other_problems_are_named(
    tmp_path: Path, flaky: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write_chat(tmp_path / "local", [chat_record(0)])
    here, *others = (put(local, f"{flaky}/{name}") for name in "abcd")
    roots = (here, others[0], "absent", others[1])
    datasets = [{"name": f"d{number}", "adapter": "chat", "root": root} for number, root in enumerate(roots)]
    datasets.append({"name": "d4", "adapter": "chat", "root": "local", "images": others[2]})
    blend = load_blend(write_blend(tmp_path / "blend.yaml", datasets))
    monkeypatch.setattr(Flaky, "failures", 1 << 20)
    monkeypatch.setattr(Flaky, "spoil", staticmethod(busy))
    monkeypatch.setattr(Flaky, "answers", [])
    with pytest.raises(ConfigError) as raised:
        find_inputs(blend, tmp_path)
    assert len(raised.value.problems) == 2, raised.value.problems
    first, second = raised.value.problems
    assert first.startswith(f"datasets.0 (d0): {here}: gave up after 5 tries")
    assert second.startswith("datasets.2 (d2).root: no folder ")
    assert len(Flaky.answers) == 5

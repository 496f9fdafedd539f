"""Pages of rejects.jsonl, compared with reading all its lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards
from preprocess.viewer import rejects as module
from preprocess.viewer.rejects import RejectFilters, Rejects
from preprocess.viewer.selection import PAGE
from shards import ShardError
from shards.files import file_sha256
from tests.support.handmade_builds import Handmade, draft


@pytest.fixture(scope="module")
def rejects(tmp_path_factory: pytest.TempPathFactory) -> Rejects:
    """A hundred rejects of two datasets and three reasons, some of them long, one line damaged."""
    made = Handmade(tmp_path_factory.mktemp("rejects") / "build")
    made.add([draft(0)])
    folder = made.finish()
    lines = [
        json.dumps(
            {
                "dataset": ("alpha", "beta")[number % 2],
                "reason": ("no_answer", "bad_text", "too_long")[number % 3],
                "file": "chat.json",
                "record": str(number),
                "detail": "é\r" + "x" * (number * 37 % 900),
            },
            ensure_ascii=False,
        )
        for number in range(100)
    ]
    lines[50] = '{"dataset": "alpha"'
    (folder / "rejects.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    made.files = {"rejects.jsonl": file_sha256(folder / "rejects.jsonl")}
    from shards.format.manifest_file import write_manifest

    write_manifest(folder, made.manifest(made.files))
    return Rejects(shards.open(folder))


filters = st.builds(
    RejectFilters,
    dataset=st.sampled_from(["", "alpha", "beta"]),
    reason=st.sampled_from(["", "no_answer", "bad_text"]),
    text=st.sampled_from(["", "X" * 300, "É", "7"]),
)


@given(filters, st.sampled_from([64, 1000, 1 << 16]))
def test_pages_forward_and_backward_have_every_reject_that_passes_once(
    rejects: Rejects, asked: RejectFilters, block: int
) -> None:
    expected = [reject.offset for reject in rejects.every(asked)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        forward, backward, offset, end = [], [], 0, rejects.size
        while offset < rejects.size:
            page = rejects.page(asked, offset, budget_s=60)
            assert len(page.rejects) <= PAGE
            forward += [reject.offset for reject in page.rejects]
            offset = page.end
        while end > 0:
            page = rejects.page(asked, end, backward=True, budget_s=60)
            backward += [reject.offset for reject in reversed(page.rejects)]
            end = page.start
    assert forward == expected
    assert backward == expected[::-1]


def test_filters_and_neighbours_are_those_of_the_list(rejects: Rejects) -> None:
    asked = RejectFilters(dataset="beta", reason="bad_text")
    found = [reject for reject in rejects.every(asked) if not reject.fault]
    assert [int(reject.record) for reject in found] == [number for number in range(100) if number % 6 == 1]
    middle = found[3].offset
    assert rejects.neighbours(RejectFilters(), 0)[0] is None
    before, after = rejects.neighbours(asked, middle)
    every = [reject.offset for reject in rejects.every(asked)]
    place = every.index(middle)
    assert (before, after) == (every[place - 1], every[place + 1])


def test_a_damaged_line_is_a_fault_that_no_filter_hides(rejects: Rejects) -> None:
    faults = [reject for reject in rejects.every(RejectFilters(reason="too_long")) if reject.fault]
    assert len(faults) == 1
    assert "the line cannot be read" in faults[0].fault
    assert rejects.at(faults[0].offset) == faults[0]
    with pytest.raises(IndexError, match="no reject at byte 1"):
        rejects.at(1)


def test_a_search_without_time_says_how_far_it_came(rejects: Rejects) -> None:
    page = rejects.page(RejectFilters(text="no such text"), budget_s=0)
    assert page.is_cut
    assert 0 < page.end < rejects.size


def test_lines_over_the_limit_do_not_lead_back_to_the_first_page(
    rejects: Rejects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_LINE", 300)
    monkeypatch.setattr(module, "_BLOCK", 64)
    offset = 0
    while offset < rejects.size:
        page = rejects.page(RejectFilters(), offset, most=2, budget_s=60)
        assert page.end > page.start >= offset or page.end == rejects.size
        offset = page.end


def test_a_file_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    made = Handmade(tmp_path / "build")
    made.add([draft(0)])
    folder = made.finish()
    (folder / "rejects.jsonl").write_text("{}\n")
    with pytest.raises(ShardError, match="it was edited or damaged"):
        Rejects(shards.open(folder))

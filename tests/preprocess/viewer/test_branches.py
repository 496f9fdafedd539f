"""What the viewer shows of samples whose records share their beginning."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette")

import shards
from preprocess.viewer import selection
from preprocess.viewer.export import write_samples_page
from preprocess.viewer.opened_build import OpenedBuild
from preprocess.viewer.sample_page import token_rows, view_sample
from preprocess.views.inspect import inspect_samples, print_sample
from preprocess.views.question_sources import find_questions
from shards.format import container
from shards.format.records import each_alone
from tests.support.shared_builds import question_blend
from tests.support.small_blends import (
    SAMPLES,
    build,
    chat_blend,
    chat_record,
    rejects_of,
    write_blend,
    write_images,
)
from tests.support.viewed_builds import Ask, app_of

RECORDS = 3
SHARED = 1
"""The number of the sample with three records; sample 0 has one"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("branches")
    build(question_blend(folder, {0: RECORDS, 1: 1}))
    return folder


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "BUDGET_S", 600)


def test_a_sample_shows_its_beginning_once_and_under_it_each_branch_with_its_record(folder: Path, ask: Ask) -> None:
    page = ask(f"/number/{SHARED}").text
    write_samples_page(folder / "out.html", folder / "build", choice=None, limit=9)
    exported = (folder / "out.html").read_text(encoding="utf-8").partition('id="mine-000000000"')[2]
    for shown in (page, exported):
        assert shown.count('<figure class="placed">') == shown.count("</span>You look at the images") == 1
        branches = shown.split('<section class="branch"')[1:]
        assert len(branches) == RECORDS
        for number, branch in enumerate(branches):
            assert f"<bdi>chat/r{number}</bdi>, from <bdi>chat.jsonl</bdi>, record <bdi>r{number}</bdi>" in branch
            roles = re.findall(r'<section class="turn (\w+)"', branch)
            assert roles == ["user", "assistant"], "a branch continues the turn in which the beginning ends"
            assert re.search(rf'<span class="trained">\s*Answer 0 of record {number}\.', branch)
    assert f"{RECORDS} separate samples would have" in page
    assert '<section class="branch"' not in ask("/number/0").text


def test_lengths_are_those_of_the_sample_and_of_its_records_as_samples(folder: Path) -> None:
    opened = OpenedBuild(folder / "build")
    view = view_sample(opened, SHARED)
    sample = opened.build["train"][SHARED]
    image_tokens = opened.build.manifest.config.image_tokens
    assert view.length == len(sample.ids) - 1 + image_tokens
    alone = [branch.beginning + branch.end - branch.start - 1 + image_tokens for branch in sample.branches]
    assert view.separate_length == sum(alone)
    assert sum(branch.trained_tokens for branch in view.branches) == view.trained_tokens


def test_the_card_of_the_list_has_the_first_question_and_the_number_of_records(ask: Ask) -> None:
    gallery = ask("/").text
    assert gallery.count(f", {RECORDS} records</span>") == 1
    assert ask("/?min_records=2").text.count('<li class="card">') == 1
    assert re.search(r"Question 0 of record 0\? <span class=\"trained\">Answer 0 of record 0\.", gallery)


def test_a_search_finds_the_text_of_each_record_and_no_text_across_two_branches(ask: Ask) -> None:
    for number in range(RECORDS):
        assert ask(f"/?text=Question+0+of+record+{number}%3F").text.count('<li class="card">') == 1
    assert ask("/?text=record+0.%3C/s%3E1").text.count('<li class="card">') == 0


def test_the_table_of_tokens_has_the_position_of_each_token_in_its_record_alone(folder: Path, ask: Ask) -> None:
    opened = OpenedBuild(folder / "build")
    sample = opened.build["train"][SHARED]
    image_tokens = opened.build.manifest.config.image_tokens
    rows = token_rows(sample, opened.tokenizer, image_tokens)
    for number, record in enumerate(each_alone(sample, opened.build.manifest.tokenizer.image_id), start=1):
        own = [row for row in rows if row.branch in (0, number)]
        assert [row.id for row in own] == record.ids.tolist()
        assert [row.position for row in own] == [
            row.first for row in token_rows(record, opened.tokenizer, image_tokens)
        ]
    assert '<th scope="col" class="number">branch</th>' in ask(f"/tokens/{SHARED}").text
    assert '<th scope="col" class="number">branch</th>' not in ask("/tokens/0").text


def test_the_records_that_were_read_are_named_by_their_branches(ask: Ask) -> None:
    page = ask(f"/record/{SHARED}").text
    order = re.findall(r"<strong>Branch (\d)</strong>|&#34;id&#34;: &#34;(r\d)&#34;", page)
    assert ["".join(found) for found in order] == ["1", "r0", "2", "r1", "3", "r2"]


def test_the_sequence_of_a_sample_says_what_a_token_of_a_branch_sees(folder: Path, ask: Ask) -> None:
    page = ask(f"/sequences?sample={SHARED}").text
    assert f"{RECORDS} records as branches" in page
    assert page.count('<line class="branch"') == RECORDS
    last = max(int(end) for end in re.findall(r"trained text of branch 3: tokens \d+ to (\d+)", page))
    answer = ask(f"/sequences?chosen=0&kind=causal&token={last}").text
    attended = re.findall(rf"Token {last}, in branch 3, attends to ([^.]+)\.", answer)
    (first, second) = [tuple(map(int, part.split(" to "))) for part in attended[0].split(", ")]
    sample = shards.open(folder / "build")["train"][SHARED]
    branch = sample.branches[2]
    assert second[1] == last
    assert second[1] - second[0] + 1 == branch.end - branch.start
    assert first[1] - first[0] + 1 == branch.beginning + 15  # of the image


def test_branch_numbers_that_are_out_of_order_are_a_fault_in_their_place(
    folder: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = container.decode_tokens

    def disordered(data: memoryview, num_tokens: int) -> np.ndarray:
        tokens = decode(data, num_tokens).copy()
        tokens[2:] = tokens[2:, ::-1]
        return tokens

    monkeypatch.setattr("shards.format.shard.decode_tokens", disordered)
    for address in ("/", f"/number/{SHARED}", "/sequences"):
        assert "branch numbers are not 0, 1, 2, ... in order" in ask(address).text
    assert ask(f"/tokens/{SHARED}").status == 500


def test_the_questions_of_a_build_are_those_of_each_record(tmp_path: Path) -> None:
    (name,) = write_images(tmp_path / "mine", 1)
    records = [chat_record(number, images=[name]) for number in range(3)]
    build(chat_blend(tmp_path, records, dataset={"share": 3}))
    assert rejects_of(tmp_path / "build") == []
    questions = find_questions(tmp_path / "build", "question")
    assert questions.texts == [f"question 0 of record {number}" for number in range(3)]
    assert questions.names == [f"mine: chat.jsonl r{number}" for number in range(3)]


def test_each_branch_has_its_own_references(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = {"name": "captions", "adapter": "coco_caption", "root": str(SAMPLES)}
    for name, share in (("shared", 5), ("apart", 1)):
        (tmp_path / name).mkdir()
        build(write_blend(tmp_path / name / "blend.yaml", [{**dataset, "share": share}]))
    apart = {
        sample.sample.metadata["id"]: sample.sample.metadata for sample in inspect_samples(tmp_path / "apart/build")
    }
    shared = [sample for sample in inspect_samples(tmp_path / "shared/build") if sample.branches]
    branches = [branch for sample in shared for branch in sample.to_json()["branches"]]
    assert len(branches) > 4
    for branch in branches:
        assert branch["sources"] == apart[branch["id"]]["sources"]
        assert [branch["references"]] == apart[branch["id"]]["references"]
    assert len({tuple(branch["references"]) for branch in branches}) > 1
    capsys.readouterr()
    print_sample(shared[0])
    shown = capsys.readouterr().out
    page = app_of(tmp_path / "shared")(f"/sample/{shared[0].sample.key}").text
    for text in (shown.partition("branch 1")[2], page.partition('<section class="branch"')[2].partition("<h2>")[0]):
        assert text.count("references") == len(shared[0].branches)
        assert all(reference in text for reference in branches[0]["references"])

"""A filter in a blend: what it drops is rejected and counted, and finished work is used again where it may be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import shards
from preprocess.blend.load import load_blend
from preprocess.cli import cli
from preprocess.compiler.report import print_report
from preprocess.errors import ConfigError, DataError
from preprocess.filters import language
from tests.support.small_blends import build, chat_blend, chat_record, files_of, jpeg, rejects_of


def blend_of(folder: Path) -> Path:
    """Six records, each with an image of its own size; the last two have two rounds."""
    (folder / "mine").mkdir()
    sizes = [(60, 60), (120, 60), (60, 240), (90, 60), (60, 60), (60, 60)]
    for number, size in enumerate(sizes):
        (folder / f"mine/{number}.jpg").write_bytes(jpeg(number, size))
    records = [chat_record(number, images=[f"{number}.jpg"], rounds=1 + (number > 3)) for number in range(6)]
    return chat_blend(folder, records, image={"store": "resized", "size": 32}, shard={"max_samples": 2})


RULES = ["datasets.mine.filter.rounds.max=1", "datasets.mine.filter.aspect_ratio.max=1.5"]


def test_what_a_filter_drops_is_a_reject_that_no_limit_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = build(blend_of(tmp_path), settings=[*RULES, "limits.max_reject_share=0"])
    mine = report.datasets["mine"]
    assert (mine.records, mine.members, mine.rejects) == (6, 2, {"filtered": 4})
    assert mine.filtered == {"rounds": 2, "aspect_ratio": 2}
    assert [(reject["record"], reject["reason"], reject["detail"]) for reject in rejects_of(report.path)] == [
        ("r4", "filtered", "rounds: the record has 2; expected at most 1"),
        ("r5", "filtered", "rounds: the record has 2; expected at most 1"),
        ("r1", "filtered", "aspect_ratio: image 1 is 120x60, 2; expected at most 1.5"),
        ("r2", "filtered", "aspect_ratio: image 1 is 60x240, 4; expected at most 1.5"),
    ]
    print_report(report)
    assert "mine: filtered: aspect_ratio 2, rounds 2" in capsys.readouterr().out.splitlines()
    assert report.to_json()["datasets"]["mine"]["filtered"] == {"aspect_ratio": 2, "rounds": 2}
    opened = shards.open(report.path)
    images = [sample.metadata["images"] for sample in opened["train"]]
    assert images == [
        [{"name": f"{number}.jpg", "width": 32, "height": 32, "original_width": width, "original_height": 60}]
        for number, width in ((0, 60), (3, 90))
    ]
    assert opened.manifest.datasets["mine"].filtered == {"rounds": 2, "aspect_ratio": 2}
    assert shards.verify(opened).problems == []
    shown = CliRunner().invoke(cli, ["stats", "--build", str(report.path)], catch_exceptions=False).stdout
    assert "mine: filtered: aspect_ratio 2, rounds 2" in shown
    as_json = CliRunner().invoke(cli, ["stats", "--build", str(report.path), "--json"], catch_exceptions=False).stdout
    assert json.loads(as_json)["filtered"] == {"mine": {"aspect_ratio": 2, "rounds": 2}}


def test_rules_over_fields_read_the_keys_of_the_records(tmp_path: Path) -> None:
    records = [chat_record(number, relevance=number, source="web" if number == 3 else "coco") for number in range(5)]
    fields = {"relevance": {"min": 2}, "source": {"any_of": ["coco"]}}
    report = build(chat_blend(tmp_path, [*records, chat_record(5)], dataset={"filter": {"fields": fields}}))
    assert report.datasets["mine"].filtered == {"fields.relevance": 3, "fields.source": 1}
    assert [sample.metadata["id"] for sample in shards.open(report.path)["train"]] == ["chat/r2", "chat/r4"]


def test_finished_work_is_used_again_as_far_as_the_rules_allow(tmp_path: Path) -> None:
    blend = blend_of(tmp_path)
    first = build(blend)
    assert (first.built_tasks, first.reused_tasks) == (4, 0)  # one reading, three shards
    plain = files_of(first.path)
    over_images = build(blend, settings=RULES[1:])
    assert (over_images.built_tasks, over_images.reused_tasks) == (3, 1)
    over_both = build(blend, settings=RULES)
    assert (over_both.built_tasks, over_both.reused_tasks) == (1, 2)
    assert build(blend, settings=RULES).built_tasks == 0
    build(blend)
    assert files_of(first.path) == plain


def test_a_filter_that_leaves_nothing_fails_the_build_with_its_counts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset mine: its filter leaves no record \(rounds 6\); change the filter"):
        build(blend_of(tmp_path), settings=["datasets.mine.filter.rounds.min=3"])


def test_the_rejects_that_a_filter_leaves_are_still_limited(tmp_path: Path) -> None:
    blend = blend_of(tmp_path)
    (tmp_path / "mine/0.jpg").unlink()
    with pytest.raises(DataError, match=r"dataset mine: 1 of 4 records are rejects \(image_missing 1\)"):
        build(blend, settings=[RULES[0], "limits.max_reject_share=0.2"])


def test_all_that_is_wrong_with_a_filter_is_reported_at_once(tmp_path: Path) -> None:
    pytest.importorskip(language.PACKAGE)
    rules = {
        "answer_word": {"min": 1},
        "relevance": {"min": 3},
        "rounds": {},
        "images": {"min": 3, "max": 1},
        "language": ["en", "english"],
        "fields": {"rating": {"mni": 3}, "source": {}},
    }
    blend = chat_blend(tmp_path, [chat_record(0)], dataset={"filter": rules})
    with pytest.raises(ConfigError) as caught:
        load_blend(blend)
    shown = [problem.removeprefix("blend.yaml: datasets.0") for problem in caught.value.problems]
    elsewhere = "; a rule for a key of the records goes below fields"
    assert sorted(shown) == sorted(
        [
            ".filter.fields.rating.mni: unknown key; did you mean min?",
            f".filter.answer_word: unknown key; did you mean answer_words?{elsewhere}",
            ".filter.relevance: unknown key; known are answer_chars, answer_words, rounds, images, fields, language, "
            f"image_width, image_height, image_shorter_side, aspect_ratio{elsewhere}",
            " (mine).filter.rounds: got no bound; expected min, max or both",
            " (mine).filter.images: got min 3 and max 1; expected a min that is not above max",
            " (mine).filter.fields.rating: got no condition; expected min, max, any_of or none_of",
            " (mine).filter.fields.source: got no condition; expected min, max, any_of or none_of",
            " (mine).filter.language: got 'english'; expected codes such as en, de or zh, or und",
        ]
    )


def test_a_rule_over_languages_names_the_extra_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "find_spec", lambda name: None)
    blend = chat_blend(tmp_path, [chat_record(0)], dataset={"filter": {"language": ["en"]}})
    with pytest.raises(
        ConfigError, match=r"filter\.language: py3langid is not installed; pip install 'dsvl\[language\]'"
    ):
        load_blend(blend)

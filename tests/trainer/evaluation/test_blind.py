"""Wrong images: which ones a sample is shown, what that changes, and how sure the difference is."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("pycocoevalcap")

import shards
from shards import Build
from shards.loader import Loader
from tests.support import evaluations, model_batches, small_blends
from tests.support.evaluations import FEW, ignore
from tests.support.tiled_builds import tiled
from tests.support.tiny_models import Loaded, loaded
from trainer.evaluation import blind, command
from trainer.evaluation.blind import blind_losses, blind_scores, left_out, margin_of
from trainer.evaluation.blind_rows import BlindRow, WrongImages, as_json, difference_text
from trainer.evaluation.metrics import Answered
from trainer.evaluation.printed import print_blind
from trainer.evaluation.report import write_report
from trainer.evaluation.runner import generate_answers, held_out_loss, held_out_questions
from trainer.evaluation.shown_images import Shown, ShownImages
from trainer.inference.cached_decoder import Prompt
from trainer.inference.generate import Generator, Sampling

MEAN = (0.5, 0.25, 0.75)

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
record = pytest.fixture(scope="module")(loaded)
build = pytest.fixture(scope="module")(evaluations.make_build)


def shown_images(build: Build, record: Loaded) -> ShownImages:
    return ShownImages(build, record.geometry, record.model.encoder.mean)


def images_of(build: Build, index: int) -> set[bytes]:
    return {bytes(image) for image in build["eval"][index].images}


def pixels_of(images: ShownImages, build: Build, index: int, shown: Shown) -> list[Any]:
    sample = build["eval"][index]
    return images.pixels(shown, index, sample.images, sample.grids)


def test_each_sample_is_shown_the_images_of_another_of_its_dataset_and_never_one_of_its_own(
    build: Build, record: Loaded
) -> None:
    images = shown_images(build, record)
    again = shown_images(build, record)
    split = build["eval"]
    everyone = {
        name: [pixels for index in range(len(split)) if split.named(index)[0] == name
               for pixels in pixels_of(images, build, index, "right")]
        for name in build.datasets
    }  # fmt: skip
    for sample in images.samples.values():
        if not images.is_measured(sample.index):
            continue
        own = pixels_of(images, build, sample.index, "right")
        other = pixels_of(images, build, sample.index, "exchanged")
        assert [pixels.shape for pixels in other] == [pixels.shape for pixels in own]
        for pixels in other:
            assert not any(torch.equal(pixels, each) for each in own)
            assert any(torch.equal(pixels, each) for each in everyone[sample.dataset])
        assert all(map(torch.equal, other, pixels_of(again, build, sample.index, "exchanged")))


def chat_build(folder: Path, images_of_records: Sequence[Sequence[int]]) -> Build:
    """All held out; a record for each entry, with images by their numbers."""
    names = small_blends.write_images(folder / "mine", 8)
    records = [
        small_blends.chat_record(number, images=[names[image] for image in images])
        for number, images in enumerate(images_of_records)
    ]
    blend = small_blends.chat_blend(folder, records, image_tokens=4, image={"size": 32}, dataset={"split": "eval"})
    return shards.open(small_blends.build(blend).path)


def test_questions_about_one_image_are_one_group_and_text_and_lone_images_are_left_out(tmp_path: Path) -> None:
    record = loaded()
    images = shown_images(chat_build(tmp_path / "two", [[0], [0], [1], []]), record)
    by_index = {sample.index: sample for sample in images.samples.values()}
    groups = [sample.group for sample in by_index.values() if sample.num_images]
    assert sorted(groups.count(group) for group in set(groups)) == [1, 2]
    assert sum(images.is_measured(index) for index in by_index) == 3
    assert list(left_out(images)) == ["mine: 1 held-out samples without images are not among these"]
    lone = shown_images(chat_build(tmp_path / "one", [[0], [0]]), record)
    assert not any(map(lone.is_measured, range(2)))
    assert list(left_out(lone)) == ["mine: 2 held-out samples are not among these: no other sample shows other images"]


def test_images_in_the_place_of_others_come_from_a_sample_that_shares_none_of_them(tmp_path: Path) -> None:
    build = chat_build(tmp_path, [[0, 1], [1, 2], [2, 3], [4, 0], [5]])
    images = shown_images(build, loaded())
    for sample in images.samples.values():
        own = pixels_of(images, build, sample.index, "right")
        other = pixels_of(images, build, sample.index, "exchanged")
        assert not any(torch.equal(mine, its) for mine in own for its in other)


def test_images_of_fewer_tiles_are_shown_again_where_more_are_expected(tmp_path: Path) -> None:
    build = tiled(tmp_path, split={"eval": 0.6})
    images = ShownImages(build, build.manifest.config.image, MEAN)
    sizes: set[int] = set()
    for sample in images.samples.values():
        if images.is_measured(sample.index):
            right, wrong = (pixels_of(images, build, sample.index, shown) for shown in ("right", "exchanged"))
            assert [each.shape for each in wrong] == [each.shape for each in right]
            sizes.update(len(each) for each in right)
    assert len(sizes) > 1, "the images of this build have different numbers of tiles"


def test_blank_images_have_the_colour_that_the_encoder_subtracts(build: Build, record: Loaded) -> None:
    images = ShownImages(build, record.geometry, MEAN)
    (first, *_) = (sample.index for sample in images.samples.values() if sample.num_images)
    (pixels, *_) = pixels_of(images, build, first, "blank")
    assert pixels.dtype == torch.uint8
    assert [set(pixels[:, channel].flatten().tolist()) for channel in range(3)] == [{128}, {64}, {191}]


def test_losses_are_those_of_each_sample_alone_with_its_images_replaced(build: Build, record: Loaded) -> None:
    images = shown_images(build, record)
    advances: list[int] = []
    rows = blind_losses(record, build, images, sequences=3, workers=0, advance=advances.append)
    sums: dict[str, dict[Shown, list[float]]] = {}
    for batch in Loader(build, split="eval", batch_size=1, max_length=512, packed=False):
        (((dataset, key),),) = batch.samples
        sample = images.samples[key]
        if images.is_measured(sample.index):
            for shown in get_args(Shown):
                pixels = torch.cat(pixels_of(images, build, sample.index, shown))
                with torch.no_grad():
                    loss = record.model(**{**batch.tensors(), "images": pixels})
                for name in (dataset, "all"):
                    total = sums.setdefault(name, {}).setdefault(shown, [0.0, 0])
                    total[0] += float(loss.total)
                    total[1] += int(loss.tokens)
    assert {row.dataset: row.measure for row in rows} == dict.fromkeys(sums, "loss")
    for row in rows:
        right, exchanged, blank_ = (
            sums[row.dataset][shown][0] / sums[row.dataset][shown][1] for shown in get_args(Shown)
        )
        assert row.right == pytest.approx(right, rel=1e-4)
        assert row.exchanged.value == pytest.approx(exchanged, rel=1e-4)
        assert row.blank.value == pytest.approx(blank_, rel=1e-4)
        assert row.exchanged.difference == pytest.approx(exchanged - right, abs=1e-3)
        assert row.exchanged.margin is not None
    assert sum(advances) == len(build["eval"])
    if all(sample.num_images for sample in images.samples.values()):
        whole = held_out_loss(record, build, sequences=3, workers=0, advance=ignore)
        assert rows[-1].right == pytest.approx(whole.loss, rel=1e-4)


def test_a_model_that_never_looks_loses_nothing_by_wrong_images(build: Build) -> None:
    record = loaded()
    with torch.no_grad():
        for parameter in record.model.projector.parameters():
            parameter.zero_()
    rows = blind_losses(record, build, shown_images(build, record), sequences=4, workers=0, advance=ignore)
    for row in rows:
        for wrong in (row.exchanged, row.blank):
            assert wrong.difference == pytest.approx(0, abs=1e-6)
            assert wrong.margin == pytest.approx(0, abs=1e-6)


def test_a_loss_that_is_not_finite_is_an_error(build: Build, monkeypatch: pytest.MonkeyPatch, record: Loaded) -> None:
    monkeypatch.setattr(blind, "_losses", lambda speaker, batch, shown, images: ([float("nan")] * 99, [1] * 99))
    with pytest.raises(shards.DsvlError, match="is NaN or infinite with some of the images"):
        blind_losses(record, build, shown_images(build, record), sequences=4, workers=0, advance=ignore)


def test_margins_hold_the_true_ratio_nineteen_times_in_twenty() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        weights = random.integers(1, 20, 60)
        values = weights * 0.3 + random.normal(0, 1, 60) * weights
        margin = margin_of(list(zip(values.tolist(), weights.tolist(), strict=True)))
        assert margin is not None
        hits += abs(values.sum() / weights.sum() - 0.3) < margin
    assert 0.92 < hits / 2000 < 0.97
    assert margin_of([(1.0, 2.0)]) is None
    assert margin_of([(1.0, 2.0), (2.0, 4.0)]) == pytest.approx(0)


def test_answers_are_scored_again_with_wrong_images(
    build: Build, record: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = shown_images(build, record)
    questions = [each for each in held_out_questions(record, build, limit=4) if each.num_images]
    seen: dict[Shown, list[bytes]] = {}
    answers: dict[Shown, Sequence[Answered]] = {}

    def answering(self: Generator, prompts: Sequence[Prompt], sampling: Sampling, **options: Any) -> list[list[int]]:
        seen[shown] += [prompt.images.numpy().tobytes() for prompt in prompts]
        return [[1] for _ in prompts]

    monkeypatch.setattr(Generator, "batch", answering)
    for shown in get_args(Shown):
        seen[shown] = []
        show = None if shown == "right" else lambda *given, shown=shown: images.pixels(shown, *given)
        answers[shown] = generate_answers(record, build, questions, FEW, batch=3, advance=ignore, show=show)
    assert not any(right == wrong for right, wrong in zip(seen["right"], seen["exchanged"], strict=True))
    assert len({tuple(np.frombuffer(each, np.uint8)[:1]) for each in seen["blank"]}) == 1
    best = [Answered(**{**vars_of(each), "prediction": each.references[0]}) for each in answers["right"]]
    rows = blind_scores({**answers, "right": best}, list(range(len(best))))
    by_measure = {(row.dataset, row.measure): row for row in rows}
    exact = by_measure["mine", "exact_match"]
    assert (exact.right, exact.exchanged.value, exact.exchanged.difference) == (1.0, 0.0, -1.0)
    assert exact.exchanged.margin == 0.0
    assert by_measure["captions", "bleu_4"].exchanged.margin is None
    assert by_measure["captions", "cider"].blank.margin is not None


def vars_of(answer: Answered) -> dict[str, Any]:
    return {name: getattr(answer, name) for name in ("dataset", "key", "kind", "references")}


ROWS = [
    BlindRow(
        dataset="<mine>",
        measure="exact_match",
        samples=1234,
        right=0.75,
        exchanged=WrongImages(value=0.25, difference=-0.5, margin=0.01),
        blank=WrongImages(value=0.5, difference=-0.25, margin=None),
    )
]


def test_the_page_the_terminal_and_json_show_each_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(tmp_path, [], title="t", blind=ROWS, blind_notes=["<note>"])
    page = (tmp_path / "results.html").read_text(encoding="utf-8")
    assert "&lt;mine&gt;" in page
    assert "-0.5000 \u00b1 0.0100" in page
    assert "&lt;note&gt;" in page
    print_blind(ROWS, ["a note"])
    printed = capsys.readouterr().out
    assert "-0.5000 \u00b1 0.0100" in printed
    assert "a note" in printed
    assert difference_text(ROWS[0].blank) == "-0.2500"
    (line,) = json.loads(json.dumps(as_json(ROWS)))
    assert line["exchanged"] == {"value": 0.25, "difference": -0.5, "margin": 0.01}
    assert line["blank"]["margin"] is None


def test_a_build_without_images_cannot_be_measured_blind(tmp_path: Path, record: Loaded) -> None:
    with pytest.raises(shards.DsvlError, match="--blind: no held-out sample has images that another one could have"):
        command._shown_images(record, chat_build(tmp_path, [[], []]))

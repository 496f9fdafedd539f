"""Packed sequences as they are drawn: those of the loader, and the attention of the trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards
from preprocess.errors import ConfigError
from preprocess.viewer.attention import AttentionKind, Span, attended_ranges, mask_blocks
from preprocess.viewer.sequences import PackedSample, PackedSettings, SequencePager, SequenceView, spans_of
from shards import Build, Sample, ShardError
from tests.support import handmade_builds
from tests.support.handmade_builds import IMAGE_ID, IMAGE_TOKENS, Handmade, draft

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    made = Handmade(tmp_path_factory.mktemp("sequences") / "build")
    made.add([draft(number, num_images=number % 4, text=6 + number * 7 % 20) for number in range(40)])
    made.add([draft(number, split="eval", num_images=1) for number in range(5)], split="eval")
    return shards.open(made.finish())


@pytest.mark.parametrize("split", ["train", "eval"])
def test_sequences_hold_the_samples_of_the_loaders_batches(build: Build, split: str) -> None:
    from shards.loader import Loader

    options = {"max_length": 64, "max_images": 5, "seed": 3}
    loader = Loader(build, split=split, batch_size=1, decode="none", epochs=1, **options)  # type: ignore[arg-type]
    pager = SequencePager(build, PackedSettings(split=split, **options))
    views: list[SequenceView] = []
    cursor: int | None = 0
    while cursor is not None:
        page, cursor = pager.page(cursor, 4)
        views += page
    batches = list(loader)
    keys = [tuple(sample.key for sample in view.samples) for view in views]
    assert keys == [tuple(key for _, key in batch.samples[0]) for batch in batches]
    for view, batch in zip(views, batches, strict=True):
        labels = batch.labels[0].numpy()
        trained = np.zeros(len(labels), bool)
        for span in view.spans:
            trained[span.start : span.end] = span.trained
        assert (trained[: view.length] == (labels[: view.length] != handmade_builds.IGNORE)).all()
    assert pager.cursor_of(-1) is None


def test_the_sequence_of_a_sample_is_found(build: Build) -> None:
    pager = SequencePager(build, PackedSettings())
    for number in (0, 17):
        cursor = pager.cursor_of(number)
        assert cursor is not None
        assert number in [sample.number for sample in pager.page(cursor, 1)[0][0].samples]
    evaluation = SequencePager(build, PackedSettings(split="eval"))
    assert evaluation.cursor_of(41) is not None
    assert evaluation.cursor_of(3) is None


def test_settings_that_do_not_fit_are_refused(build: Build) -> None:
    with pytest.raises(ConfigError, match="split: got 'test'"):
        SequencePager(build, PackedSettings(split="test"))
    with pytest.raises(ShardError, match="a sequence takes 9"):
        SequencePager(build, PackedSettings(max_length=9)).page(0)


def test_a_damaged_sample_is_a_fault_in_its_sequence(tmp_path: Path) -> None:
    folder = handmade_builds.make(tmp_path / "build").folder
    tar = next((folder / "shards/beta").glob("train-*.tar"))
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    page, _ = SequencePager(shards.open(folder), PackedSettings()).page(0, 99)
    faults = [sample for view in page for sample in view.samples if sample.fault]
    assert len(faults) == 1
    assert "is damaged" in faults[0].fault
    assert faults[0].end > faults[0].start


@st.composite
def sequences(draw: st.DrawFn) -> tuple[Span, ...]:
    """Samples one after the other, each of text and images in any order; the last spans of some are branches."""
    spans: list[Span] = []
    for place in range(draw(st.integers(1, 3))):
        images = 0
        beginning = [0] * draw(st.integers(1, 4))
        for branch in (*beginning, *draw(st.sampled_from([(), (1, 2), (1, 1, 2), (1, 2, 2, 3)]))):
            start = spans[-1].end if spans else 0
            is_image = not branch and draw(st.booleans())
            spans.append(
                Span(
                    start=start,
                    end=start + draw(st.integers(1, 3)),
                    sample=place,
                    trained=not is_image and draw(st.booleans()),
                    image=images if is_image else None,
                    branch=branch,
                )
            )
            images += is_image
    return tuple(spans)


@given(sequences(), st.sampled_from(["mmca", "causal"]))
def test_a_token_attends_to_what_the_trainer_lets_it_attend_to(spans: tuple[Span, ...], kind: AttentionKind) -> None:
    length = spans[-1].end
    seen = np.zeros((length, length), bool)
    for token in range(length):
        for start, end in attended_ranges(spans, token, kind):
            seen[token, start:end] = True
    assert (seen == trainers_mask(spans, kind)).all()
    drawn = np.zeros((length, length), bool)
    for block in mask_blocks(spans, kind):
        rows, columns = np.mgrid[block.top : block.bottom, block.left : block.right]
        part = {"all": rows >= 0, "triangle": columns <= rows, "diagonal": columns == rows}[block.shape]
        assert not drawn[block.top : block.bottom, block.left : block.right][part].any()
        drawn[block.top : block.bottom, block.left : block.right] |= part
    assert (drawn == seen).all()
    assert attended_ranges(spans, length, kind) == []


def trainers_mask(spans: tuple[Span, ...], kind: AttentionKind) -> np.ndarray:
    """What each token sees in a sample of its own: each branch with the beginning is a sample, as without `share`."""
    seen = np.zeros((spans[-1].end, spans[-1].end), bool)
    for place in {span.sample for span in spans}:
        own = [span for span in spans if span.sample == place]
        for branch in {span.branch for span in own} - {0} or {0}:
            record = [span for span in own if span.branch in (0, branch)]
            tokens = [token for span in record for token in range(span.start, span.end)]
            is_image = [span.image is not None for span in record for _ in range(span.start, span.end)]
            seen[np.ix_(tokens, tokens)] |= mask_of_a_sample(is_image, kind)
    return seen


def mask_of_a_sample(is_image: list[bool], kind: AttentionKind) -> np.ndarray:
    """What changes a token's output of the trainer's attention if the value of another token changes."""
    from tests.support.oracles_attention import mmca

    length = len(is_image)
    values = torch.eye(length, dtype=torch.float64)[None, None]  # each token's value is a dimension of its own
    flat = torch.zeros(1, 1, length, 2, dtype=torch.float64)
    images = torch.tensor([is_image]) & (kind == "mmca")
    out = mmca(flat, flat, values, images, torch.ones(1, length, dtype=torch.long), 1.0)
    return (out[0, :, 0] != 0).numpy()


def test_spans_of_a_sample_cover_it_and_expand_its_images(build: Build) -> None:
    for sample in build["train"][:8]:
        spans = spans_of(sample, image_id=IMAGE_ID, image_tokens=IMAGE_TOKENS, place=2, start=100)
        assert [span.start for span in spans] == [100, *(span.end for span in spans[:-1])]
        images = [span for span in spans if span.image is not None]
        assert [span.image for span in images] == list(range(len(sample.images)))
        assert all(span.end - span.start == IMAGE_TOKENS for span in images)
        trained = sum(span.end - span.start for span in spans if span.trained)
        assert trained == int((sample.labels != handmade_builds.IGNORE).sum())


def test_spans_of_a_sample_with_branches_say_which_branch_they_are_of() -> None:
    ids = [IMAGE_ID, 20, 21, 30, 31, 32, 40, 41]
    labels = [-100, -100, -100, -100, -100, 32, 40, 41]
    tokens = np.array([ids, labels, [0, 0, 0, 1, 1, 1, 2, 2]], np.int32)
    sample = Sample("shard", "key", memoryview(b"{}"), tokens, [memoryview(b"")])
    spans = spans_of(sample, image_id=IMAGE_ID, image_tokens=IMAGE_TOKENS, start=100)
    assert [(span.start, span.end, span.branch, span.trained) for span in spans] == [
        (100, 104, 0, False),
        (104, 106, 0, False),
        (106, 108, 1, False),
        (108, 109, 1, True),
        (109, 111, 2, True),
    ]
    shown = PackedSample(number=0, key="key", start=100, end=111, spans=spans)
    assert shown.branch_starts == (106, 109)

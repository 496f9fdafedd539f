"""What is kept of images and conversations stays within its bound, and is what was used last."""

# ruff: noqa: E402 - torch may be missing

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from trainer.inference import state_cache
from trainer.inference.cached_decoder import Prompt
from trainer.inference.slots import States
from trainer.inference.state_cache import Prefix, StateCache, digest_of, trace_of


def states(num_tokens: int) -> States:
    return States((torch.zeros(1, num_tokens, 4),), (torch.zeros(1, num_tokens, 4),))  # 32 bytes a token


def prefix(ids: list[int]) -> Prefix:
    return Prefix(trace=np.array(ids, np.int64), positions=np.arange(len(ids)), states=states(len(ids)))


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 2), min_size=1, max_size=9)), max_size=12))
def test_any_use_stays_within_the_bound(actions: list[tuple[bool, list[int]]]) -> None:
    cache = StateCache(500)
    for is_image, ids in actions:
        if is_image:
            cache.add_image(bytes(ids), states(len(ids)))
        else:
            cache.add_prefix(prefix(ids))
        assert 0 <= cache.image_bytes + cache.prefix_bytes <= 500
    for is_image, ids in actions[-1:]:
        assert is_image is False or cache.image(bytes(ids)) is not None, "what is used last is kept if it fits"


def test_the_image_that_was_used_longest_ago_is_dropped_first() -> None:
    cache = StateCache(2 * 320)
    cache.add_image(b"a", states(10))
    cache.add_image(b"b", states(10))
    assert cache.image(b"a") is not None
    cache.add_image(b"c", states(10))
    assert [cache.image(name) is not None for name in (b"a", b"b", b"c")] == [True, False, True]
    cache.add_image(b"large", states(30))
    assert cache.image(b"large") is None
    assert cache.image_bytes == 640, "what is too large displaces nothing"


IDS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@given(st.lists(IDS, max_size=8), IDS)
def test_the_longest_beginning_is_that_of_comparing_all(kept: list[list[int]], asked: list[int]) -> None:
    cache = StateCache(1 << 20)
    for ids in kept:
        cache.add_prefix(prefix(ids))

    def shared(ids: list[int]) -> int:
        return max(n for n in range(min(len(ids), len(asked)) + 1) if ids[:n] == asked[:n])

    entry, length = cache.prefix(np.array(asked, np.int64))
    assert length == max(map(shared, kept), default=0)
    assert entry is None or entry.trace[:length].tolist() == asked[:length]


def test_a_conversation_that_continues_takes_the_place_of_its_beginning() -> None:
    cache = StateCache(1 << 20)
    cache.add_prefix(prefix([1, 2, 3]))
    alone = cache.prefix_bytes
    cache.add_prefix(prefix([1, 2, 3, 4, 5, 6]))
    cache.add_prefix(prefix([1, 2]))
    assert cache.prefix_bytes == 2 * alone


def test_the_number_of_kept_conversations_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_cache, "MOST_PREFIXES", 3)
    cache = StateCache(1 << 20)
    for first in range(5):
        cache.add_prefix(prefix([first, 7]))
    assert [cache.prefix(np.array([first, 7], np.int64))[1] for first in range(5)] == [0, 0, 2, 2, 2]


def test_digests_are_of_pixels_alone() -> None:
    pixels = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
    turned = pixels.permute(0, 2, 1).contiguous()
    assert digest_of(pixels) == digest_of(pixels.clone())
    assert digest_of(turned.permute(0, 2, 1)) == digest_of(pixels), "not of how they lie in memory"
    assert digest_of(turned) != digest_of(pixels)


def test_images_are_the_same_in_a_sequence_only_if_their_whole_digests_are() -> None:
    ids = np.array([7, 1, 1, 1, 8])
    shown = Prompt(ids=ids, images=torch.zeros(1, 3, 4, 4, dtype=torch.uint8), slots=(1,), end_id=0)
    digest = digest_of(shown.images[0])
    trace = trace_of(shown, [digest], 3)
    assert np.array_equal(trace, trace_of(shown, [digest], 3))
    assert np.array_equal(np.flatnonzero(trace < 0), [1, 2, 3])
    assert np.array_equal(trace[[0, 4]], [7, 8])
    for number in (0, 7, 8, 31):
        other = bytearray(digest)
        other[number] ^= 1
        assert not np.isin(trace_of(shown, [bytes(other)], 3)[1:4], trace).any()

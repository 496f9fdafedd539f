"""An unknown word names its nearest neighbour, if one is near."""

from __future__ import annotations

from dst.common.suggest import nearest


def test_the_nearest_word_is_only_named_when_it_is_near() -> None:
    assert nearest("vicunna", ["llama2", "vicuna"]) == "; did you mean vicuna?"
    assert nearest("zzz", ["llama2", "vicuna"]) == ""
    assert nearest("zzz", []) == ""

"""How many tiles the images of a sample get: as many as the blend allows, or fewer where it would be too long.

Rule: nothing of the text is given up for tiles. What fits with one tile for each image is a sample; tiles take what
room is left, and each image of a sample is allowed equally many.
"""

from __future__ import annotations

from collections.abc import Sequence

from preprocess.compiler.task import TaskContext
from preprocess.errors import RejectError
from shards.images.tiles import Grid, plan_grids


def plan_tiles(
    sizes: Sequence[tuple[int, int]], text_tokens: int, context: TaskContext, *, joined: bool = False
) -> tuple[list[Grid], set[str]]:
    """The grid of each image of a sample, and notes. Raises RejectError if the images are more than limits.max_tiles.

    sizes: width and height of each image, upright. text_tokens: of the sample. joined: whether other images may join
    it, so that it counts as one of several images.
    """
    if context.max_tiles is not None and len(sizes) > context.max_tiles:
        got = f"{len(sizes)} images of a tile each; limits.max_tiles is {context.max_tiles}"
        raise RejectError("too_many_images", got)
    policy = context.image
    most = policy.geometry.most_tiles(len(sizes) + joined)
    room = (context.max_length - text_tokens) // context.image_tokens
    budget = room if context.max_tiles is None else min(room, context.max_tiles)
    grids, allowed = plan_grids(sizes, policy.geometry, most=most, budget=budget)
    small = [
        grid.tiles > 1 and width * height < policy.size**2 for grid, (width, height) in zip(grids, sizes, strict=True)
    ]
    reasons = {"fewer_tiles": bool(sizes) and allowed < most, "enlarged": any(small)}
    return grids, {name for name, is_so in reasons.items() if is_so}

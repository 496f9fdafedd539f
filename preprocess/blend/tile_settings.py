"""Checks of the settings of tiles, which depend on each other."""

from __future__ import annotations

from preprocess.blend.config import Blend

MAX_JPEG_SIDE = 65_500
"""Pixels that libjpeg writes in a row or column (JPEG_MAX_DIMENSION)"""


def check_tiles(blend: Blend) -> list[str]:
    """Problems of tiles with other keys, one line each."""
    if not blend.is_tiled:
        return []
    image, limits = blend.image, blend.limits
    problems = []
    if image.fit == "crop":
        problems.append(
            "image.fit: got crop; expected squash or pad, since image.tiles is there to lose nothing of an image and "
            "crop cuts its borders off"
        )
    settings = [("image.tiles", image.tiles), ("image.tiles_multi", image.tiles_multi)]
    for index, dataset in enumerate(blend.datasets):
        where = f"datasets.{index} ({dataset.name})"
        settings += [(f"{where}.tiles", dataset.tiles or 1), (f"{where}.tiles_multi", dataset.tiles_multi or 1)]
    for where, tiles in settings:
        if tiles * image.size**2 > image.max_pixels:
            problems.append(
                f"{where}: got {tiles} tiles of {image.size}x{image.size}; expected at most image.max_pixels, "
                f"{image.max_pixels} pixels, of all of them"
            )
        if image.store == "resized" and image.format == "jpeg" and tiles * image.size > MAX_JPEG_SIDE:
            problems.append(
                f"{where}: got {tiles}, of which a strip may be {tiles * image.size} pixels long; expected at most "
                f"{MAX_JPEG_SIDE}, which is all that a JPEG holds; set image.format: png, image.store: original, or "
                f"{where.rpartition('.')[2]}: {MAX_JPEG_SIDE // image.size}"
            )
        with_overview = tiles + 1
        if tiles > 1 and with_overview * blend.image_tokens >= limits.max_length:
            most = (limits.max_length - 1) // blend.image_tokens - 1
            fix = f"tiles: {most}" if most > 1 else "tiles: 1"
            problems.append(
                f"{where}: got {tiles}, with the overview {with_overview} x {blend.image_tokens} = "
                f"{with_overview * blend.image_tokens} tokens of one image; expected fewer than limits.max_length, "
                f"{limits.max_length}; set {fix}, raise limits.max_length, or make image_tokens fewer"
            )
        if limits.max_tiles is not None and tiles > 1 and with_overview > limits.max_tiles:
            problems.append(
                f"{where}: got {tiles}, with the overview {with_overview} tiles of one image; expected at most "
                f"limits.max_tiles, {limits.max_tiles}"
            )
    return problems

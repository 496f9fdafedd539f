"""Builds with tiles: how many each image gets, what the shards say of it, and which settings are refused."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import shards
from preprocess.blend.load import load_blend
from preprocess.errors import ConfigError
from shards import Sample
from shards.images.decode import DECODERS
from shards.images.tiles import ONE_TILE, Grid, choose_grid
from tests.support.decoded_images import photo
from tests.support.image_files import encoded
from tests.support.small_blends import build, chat_blend, chat_record, files_of, rejects_of, write_blend
from tests.support.tiled_builds import IMAGE_TOKENS, SIDE, SIZES, tiled, tiled_blend


def samples(folder: Path) -> dict[str, Sample]:
    return {sample.metadata["id"].rpartition("/")[2]: sample for sample in shards.open(folder / "build")["train"]}


def tokens_of(sample: Sample) -> int:
    return len(sample.ids) - len(sample.images) + sample.tiles * IMAGE_TOKENS


@pytest.mark.parametrize("rule", ["ratio", "resolution"])
@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_images_get_the_grid_that_suits_them_and_the_index_knows_their_tiles(
    fit: str, rule: str, tmp_path: Path
) -> None:
    built = tiled(tmp_path, image={"fit": fit, "grid": rule})
    geometry = built.manifest.config.image
    expected = [choose_grid(*size, geometry, 6) for size in SIZES]
    got = samples(tmp_path)
    assert [got[f"r{number}"].grids for number in range(len(SIZES))] == [(grid,) for grid in expected]
    assert got[f"r{len(SIZES)}"].grids == ()
    assert {grid.tiles for grid in expected} > {1, 7}
    described = got["r0"].metadata["images"][0]
    assert (described["columns"], described["rows"]) == expected[0]
    lengths, tiles = built["train"].lengths(np.arange(len(built["train"])), IMAGE_TOKENS)
    assert tiles.tolist() == [sample.tiles for sample in built["train"]]
    assert lengths.tolist() == [tokens_of(sample) for sample in built["train"]]
    assert shards.verify(built).problems == []


def test_resized_images_are_the_canvas_and_show_the_tiles_of_the_originals(tmp_path: Path) -> None:
    for fit in ("squash", "pad"):
        for store in ("original", "resized"):
            tiled(tmp_path / fit / store, image={"store": store, "fit": fit, "format": "png"})
        pairs = zip(*(samples(tmp_path / fit / store).values() for store in ("original", "resized")), strict=True)
        for original, resized in pairs:
            assert np.array_equal(original.ids, resized.ids)
            assert original.grids == resized.grids
            for one, other, grid in zip(original.images, resized.images, original.grids, strict=True):
                assert Image.open(io.BytesIO(other)).size == grid.canvas(SIDE)
                pixels = [np.zeros((grid.tiles, SIDE, SIDE, 3), np.uint8) for _ in range(2)]
                geometry = shards.open(tmp_path / fit / "original/build").manifest.config.image
                for data, out in zip((one, other), pixels, strict=True):
                    DECODERS["exact"](data, geometry, out, grid)
                assert np.array_equal(pixels[0][:-1], pixels[1][:-1])
                overview = np.abs(pixels[0][-1].astype(float) - pixels[1][-1])
                assert overview.mean() <= (0 if fit == "pad" else 3), "an overview is made of what is stored"


def test_a_sample_too_long_for_its_tiles_takes_fewer_and_says_so(tmp_path: Path) -> None:
    whole = tiled(tmp_path / "whole", images=[[(96, 64)], [(32, 32)]])
    assert shards.verify(whole).problems == []
    most = tokens_of(samples(tmp_path / "whole")["r0"])
    for less, tiles in ((0, 7), (1, 6), (2 * IMAGE_TOKENS, 5), (2 * IMAGE_TOKENS + 1, 4), (6 * IMAGE_TOKENS, 1)):
        folder = tmp_path / str(less)
        built = tiled(folder, images=[[(96, 64)], [(32, 32)]], limits={"max_length": most - less})
        got = samples(folder)
        assert got["r0"].tiles <= tiles
        assert got["r0"].grids[0] in [choose_grid(96, 64, built.manifest.config.image, cells) for cells in range(1, 7)]
        assert got["r0"].metadata.get("notes", []) == (["fewer_tiles"] if less else [])
        assert np.array_equal(got["r0"].ids, samples(tmp_path / "whole")["r0"].ids), "no text is given up for tiles"
        assert tokens_of(got["r0"]) <= most - less
        assert got["r1"].tiles == 1
        assert built.manifest.datasets["mine"].notes.get("fewer_tiles", 0) == bool(less)
        assert shards.verify(built).problems == []
    folder = tmp_path / "cut"
    tiled(folder, images=[[(96, 64)], []], limits={"max_length": most - 6 * IMAGE_TOKENS - 1, "max_reject_share": 1})
    assert [reject["reason"] for reject in rejects_of(folder / "build")] == ["too_long"]


def test_samples_of_several_images_have_a_setting_of_their_own(tmp_path: Path) -> None:
    images = [[(96, 64)], [(96, 64), (64, 64)]]
    tiled(tmp_path / "default", images=images)
    assert samples(tmp_path / "default")["r0"].grids == (Grid(3, 2),)
    assert samples(tmp_path / "default")["r1"].grids == (ONE_TILE, ONE_TILE)
    tiled(tmp_path / "two", images=images, image={"tiles_multi": 2})
    assert samples(tmp_path / "two")["r1"].grids == (Grid(2, 1), ONE_TILE)


def test_a_dataset_may_have_other_tiles_than_the_blend(tmp_path: Path) -> None:
    built = tiled(tmp_path, images=[[(96, 64)]], image={"tiles": 1}, dataset={"tiles": 2, "tiles_multi": 1})
    (sample,) = built["train"]
    assert sample.grids == (Grid(2, 1),)
    assert built.manifest.config.image.tiles == 1


def test_max_tiles_bounds_a_sample(tmp_path: Path) -> None:
    images = [[(96, 64)], [(96, 64)] * 2, [(96, 64)] * 4]
    limits = {"max_length": 256, "max_tiles": 7, "max_reject_share": 1}
    built = tiled(tmp_path, images=images, image={"tiles_multi": 6}, limits=limits)
    got = samples(tmp_path)
    assert [got[name].tiles for name in ("r0", "r1", "r2")] == [7, 6, 4]
    assert built.manifest.datasets["mine"].notes == {"fewer_tiles": 2}
    assert shards.verify(built).problems == []
    tiled(tmp_path / "less", images=images, image={"tiles": 2}, limits={**limits, "max_tiles": 3})
    (reject,) = rejects_of(tmp_path / "less/build")
    assert reject["reason"] == "too_many_images"
    assert "limits.max_tiles is 3" in reject["detail"]


def test_small_images_that_become_several_tiles_are_counted(tmp_path: Path) -> None:
    built = tiled(tmp_path, images=[[(30, 20)], [(300, 200)]])
    assert built.manifest.datasets["mine"].notes == {"enlarged": 1}
    assert samples(tmp_path)["r0"].grids == (Grid(3, 2),)


def test_joined_conversations_count_as_several_images_and_one_that_is_left_alone_does_not(tmp_path: Path) -> None:
    limits = {"max_length": 999}
    built = tiled(tmp_path, images=[[(96, 64)]] * 5, image={"tiles_multi": 2}, dataset={"concat": 2}, limits=limits)
    assert [sample.grids for sample in built["train"]] == [(Grid(2, 1),) * 2, (Grid(2, 1),) * 2, (Grid(3, 2),)]
    assert shards.verify(built).problems == []
    tight = tokens_of(built["train"][0])
    built = tiled(tmp_path / "text", images=[[(96, 64)], []], dataset={"concat": 2}, limits=limits)
    assert [sample.grids for sample in built["train"]] == [(Grid(3, 2),)], "no other image joined it"
    assert [len(sample.metadata["sources"]) for sample in built["train"]] == [2]
    assert shards.verify(built).problems == []
    built = tiled(
        tmp_path / "tight",
        images=[[(96, 64)]] * 4,
        image={"tiles_multi": 2},
        dataset={"concat": 2},
        limits={"max_length": tight - 1},
    )
    assert all(tokens_of(sample) < tight for sample in built["train"])


def test_records_that_share_an_image_share_its_tiles_and_fit_together(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    blend = tiled_blend(folder, images=[[(96, 64)]], limits={"max_length": 256}, dataset={"share": 4})
    record = json.loads((folder / "mine/chat.jsonl").read_text().splitlines()[0])
    (folder / "mine/chat.jsonl").write_text("\n".join(json.dumps({**record, "id": str(number)}) for number in range(4)))
    (sample,) = shards.open(build(blend).path)["train"]
    assert (len(sample.branches), sample.grids) == (4, (Grid(3, 2),))
    length = tokens_of(sample)
    blend.write_text(blend.read_text().replace("max_length: 256", f"max_length: {length - 1}"))
    (sample,) = shards.open(build(blend).path)["train"]
    assert (len(sample.branches), sample.metadata["notes"]) == (4, ["fewer_tiles"])
    assert tokens_of(sample) < length
    assert shards.verify(shards.open(folder / "build")).problems == []


def test_one_tile_is_the_build_of_before_byte_for_byte(tmp_path: Path) -> None:
    images = [[(96, 64)], [(30, 20)] * 2]
    limits = {"max_length": 256, "max_tiles": 1}
    tiled(tmp_path / "one", images=images, image={"tiles": 1, "grid": "resolution"}, limits=limits)
    blend = tiled_blend(tmp_path / "none", images=images, image={})
    tree = blend.read_text().replace("  tiles: 6\n", "")
    assert tree != blend.read_text()
    blend.write_text(tree)
    build(blend)
    assert files_of(tmp_path / "one/build") == files_of(tmp_path / "none/build")
    manifest = json.loads((tmp_path / "one/build/manifest.json").read_text())
    assert manifest["version"] == 1
    config = manifest["config"]
    assert not {"tiles", "tiles_multi", "grid", "max_tiles"} & {
        *config["image"],
        *config["limits"],
        *config["datasets"][0],
    }


def test_builds_with_tiles_are_of_version_3_and_the_same_each_time(tmp_path: Path) -> None:
    first, second = (tiled(tmp_path / name) for name in ("first", "second"))
    assert files_of(tmp_path / "first/build") == files_of(tmp_path / "second/build")
    assert json.loads((tmp_path / "first/build/manifest.json").read_text())["version"] == 3
    assert first.manifest.hash == second.manifest.hash


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"image": {"fit": "crop", "tiles": 6}}, "image.fit: got crop; expected squash or pad"),
        (
            {"image": {"fit": "squash", "tiles": 12}, "image_tokens": 576},
            "image.tiles: got 12, with the overview 13 x 576 = 7488 tokens of one image; expected fewer than "
            "limits.max_length, 4096; set tiles: 6",
        ),
        (
            {"image": {"fit": "squash", "tiles": 2}, "image_tokens": 2048},
            "image.tiles: got 2, with the overview 3 x 2048 = 6144 tokens of one image; expected fewer than "
            "limits.max_length, 4096; set tiles: 1",
        ),
        (
            {"image": {"fit": "pad", "tiles_multi": 4}, "limits": {"max_tiles": 4}},
            "image.tiles_multi: got 4, with the overview 5 tiles of one image; expected at most limits.max_tiles, 4",
        ),
        (
            {"image": {"fit": "pad", "tiles": 8, "size": 4096}},
            "image.tiles: got 8 tiles of 4096x4096; expected at most image.max_pixels, 100000000 pixels",
        ),
        (
            {"image": {"fit": "squash", "tiles": 64, "size": 1040, "store": "resized"}, "image_tokens": 4},
            "image.tiles: got 64, of which a strip may be 66560 pixels long; expected at most 65500, which is all that "
            "a JPEG holds; set image.format: png, image.store: original, or tiles: 62",
        ),
        ({"image": {"fit": "pad", "tiles": 0}}, "image.tiles: got 0; expected at least 1"),
        ({"image": {"grid": "best"}}, "image.grid: got 'best'; expected one of ratio, resolution"),
    ],
)
def test_settings_that_do_not_fit_together_are_named(settings: dict[str, Any], problem: str, tmp_path: Path) -> None:
    dataset = {"name": "mine", "adapter": "chat", "root": "."}
    with pytest.raises(ConfigError) as raised:
        load_blend(write_blend(tmp_path / "blend.yaml", [dataset], **settings))
    assert any(problem in line for line in raised.value.problems), raised.value.problems


def test_tiles_of_a_dataset_are_checked_too(tmp_path: Path) -> None:
    dataset = {"name": "mine", "adapter": "chat", "root": ".", "tiles": 9}
    with pytest.raises(ConfigError) as raised:
        load_blend(write_blend(tmp_path / "blend.yaml", [dataset], image_tokens=576))
    assert [line.partition(": ")[2][:30] for line in raised.value.problems] == [
        "image.fit: got crop; expected ",
        "datasets.0 (mine).tiles: got 9",
    ]


def test_frames_of_an_animation_and_images_of_an_archive_are_cut_too(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (96, 64), colour) for colour in ("red", "green", "blue", "white")]
    (tmp_path / "mine").mkdir()
    frames[0].save(tmp_path / "mine/film.gif", save_all=True, append_images=frames[1:])
    with zipfile.ZipFile(tmp_path / "mine/photos.zip", "w") as archive:
        archive.writestr("photo.png", encoded(photo(64, 96), "PNG"))
    records = [chat_record(0, images=["film.gif"]), chat_record(1, images=["photo.png"])]
    for store in ("original", "resized"):
        blend = chat_blend(
            tmp_path,
            records,
            dataset={"images": [".", "photos.zip"], "frames": "even:2"},
            image_tokens=IMAGE_TOKENS,
            image={"size": SIDE, "fit": "squash", "tiles": 6, "tiles_multi": 6, "store": store},
        )
        built = shards.open(build(blend, out=tmp_path / store).path)
        assert [sample.grids for sample in built["train"]] == [(Grid(3, 2),) * 2, (Grid(2, 3),)]
        assert [image["frame"] for image in built["train"][0].metadata["images"]] == [0, 3]
        assert shards.verify(built).problems == []

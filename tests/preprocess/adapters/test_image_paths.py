"""Paths of images: every spelling of a path below an image folder reads the same file, any other is refused."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.fields import image_at, image_groups, image_name
from preprocess.conversation import Image
from preprocess.errors import RejectError
from preprocess.images.stores import open_stores

PARTS = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0:"), min_size=1, max_size=8).filter(
    lambda part: part not in (".", "..") and part.casefold() not in ("data", "file")
)
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join)

RELATIVE: dict[str, Callable[[str], str]] = {
    "plain": lambda name: name,
    "dot": lambda name: f"./{name}",
    "slashes": lambda name: name.replace("/", "//"),
    "dots amid": lambda name: name.replace("/", "/./"),
    "detour": lambda name: f"some/folder/../../{name}",
    "backslashes": lambda name: name.replace("/", "\\"),
    "dot and backslashes": lambda name: ".\\" + name.replace("/", "\\"),
}
ABSOLUTE: dict[str, Callable[[str], str]] = {
    "absolute": lambda path: path,
    "absolute with a detour": lambda path: f"{path}/../{path.rpartition('/')[2]}",
    "URL": lambda path: f"file://{quote(path)}",
    "URL with a host": lambda path: f"FILE://localhost{quote(path)}",
    "URL with one slash": lambda path: f"file:{quote(path)}",
    "URL with every byte as a code": lambda path: "file:///" + "".join(f"%{byte:02x}" for byte in path[1:].encode()),
}


def request(root: Path, *images: str) -> Request:
    return Request(root=root, annotations=(), images=tuple(root / name for name in images))


def reason(path: str, dataset: Request) -> RejectError:
    with pytest.raises(RejectError) as caught:
        image_at(path, dataset)
    assert caught.value.reason == "image_path"
    return caught.value


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Request:
    return request(tmp_path_factory.mktemp("mine"), ".")


@given(name=NAMES)
@settings(max_examples=50)
def test_every_spelling_of_a_path_below_an_image_folder_names_the_same_file(name: str, dataset: Request) -> None:
    spellings = [spell(name) for spell in RELATIVE.values()]
    spellings += [spell(f"{dataset.root}/{name}") for spell in ABSOLUTE.values()]
    found = {image_at(path, dataset) for path in spellings}
    assert found == {Image(name=name)}
    assert image_groups(dataset, found) == image_groups(dataset, [Image(name=name)])


@given(path=st.lists(st.sampled_from(["..", ".", "", "a", "b.jpg"]), min_size=1).map("/".join))
def test_a_path_is_read_where_it_leads_or_refused_if_it_leaves(path: str, dataset: Request) -> None:
    """The oracle: where the path leads from the folder."""
    root = str(dataset.root)
    target = posixpath.normpath(posixpath.join(root, path))
    if path.startswith("//"):
        reason(path, dataset)
    elif path and target.startswith(f"{root}/"):
        assert posixpath.join(root, image_at(path, dataset).name) == target
    else:
        reason(path, dataset)


def test_an_absolute_path_is_read_from_the_folder_that_it_is_in(tmp_path: Path) -> None:
    """Not from an earlier folder that has a file with the same name."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").write_bytes(folder.encode())
    (tmp_path / "link").symlink_to(tmp_path / "two")
    dataset = request(tmp_path, "one", "link")
    stores = open_stores(dataset.images, tmp_path / "cache")
    for path, expected in [("one/a.jpg", b"one"), ("two/a.jpg", b"two"), ("link/a.jpg", b"two")]:
        image = image_at(f"{tmp_path}/{path}", dataset)
        assert stores.read(image) == expected
        assert set(image_groups(dataset, [image])) <= set(image_groups(dataset, [Image(name="a.jpg")]))


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("/elsewhere/a.jpg", "expected a path below {root}/images/"),
        ("{root}/other/x/a.jpg", "below the root {root}, and not in {root}/images/; set images: [images, .]"),
        ("{root}/a.jpg", "set images: [images, .]"),
        ("{root}/imagesque/a.jpg", "set images: [images, .]"),
        ("file:///elsewhere/a.jpg", "expected a path below {root}/images/"),
        ("file://server/share/a.jpg", "it names the host 'server'"),
        ("file://a.jpg", "image is 'file://a.jpg'"),
        ("file:///%ff.jpg", "percent codes are not UTF-8"),
        ("C:\\pictures\\a.jpg", "Windows drive"),
        ("file:///C:/pictures/a.jpg", "Windows drive"),
        ("\\\\server\\share\\a.jpg", "network share"),
        ("//server/share/a.jpg", "network share"),
        ("../a.jpg", "expected a path below {root}/images/; add the image's folder"),
        ("x/../../a.jpg", "expected a path below {root}/images/; add the image's folder"),
        ("..\\a.jpg", "expected a path below {root}/images/; add the image's folder"),
        ("file:../a.jpg", "expected a path below {root}/images/; add the image's folder"),
        ("file:%2e%2e/a.jpg", "expected a path below {root}/images/; add the image's folder"),
        ("{root}/images/../../a.jpg", "expected a path below"),
        ("file://{root}/images/%2e%2e/a.jpg", "set images: [images, .]"),
        ("x/..", "not of a folder"),
        (".", "not of a folder"),
        ("/", "not of a folder"),
        ("s3://bucket/a.jpg", "download it first"),
    ],
)
def test_a_path_that_leads_elsewhere_is_refused_with_what_to_do(path: str, advice: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    dataset = request(tmp_path, "images")
    error = reason(path.replace("{root}", str(tmp_path)), dataset)
    assert advice.replace("{root}", str(tmp_path)) in error.detail


def test_the_advice_for_an_absolute_path_below_the_root_reads_it(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.jpg").write_bytes(b"x")
    dataset = request(tmp_path, "images", ".")
    image = image_at(f"{tmp_path}/other/a.jpg", dataset)
    assert open_stores(dataset.images, tmp_path / "cache").read(image) == b"x"


def test_an_absolute_path_is_refused_where_only_archives_have_images(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"PK")
    assert "below the root" in reason(f"{tmp_path}/a.jpg", request(tmp_path, "images.zip")).detail


def test_a_name_made_of_an_id_may_not_be_absolute() -> None:
    assert image_name("./a//b.jpg") == "a/b.jpg"
    for path in ("/a.jpg", "../a.jpg"):
        with pytest.raises(RejectError, match=r"expected a relative path without \.\."):
            image_name(path)


def test_a_path_that_leaves_the_root_is_read_if_it_leads_below_an_image_folder(tmp_path: Path) -> None:
    for folder in ("texts", "photos", "other"):
        (tmp_path / folder).mkdir()
    dataset = replace(request(tmp_path, "photos", "other"), root=tmp_path / "texts")
    assert image_at("../photos/x/a.jpg", dataset) == Image(name="x/a.jpg", store=0)
    assert image_at("y/../../other/a.jpg", dataset) == Image(name="a.jpg", store=1)
    assert "it leads to" in reason("../../photos/a.jpg", dataset).detail

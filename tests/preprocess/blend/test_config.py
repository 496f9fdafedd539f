"""Which files of a dataset are looked for, and what a blend may say about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from preprocess.adapters.registry import ADAPTERS
from preprocess.blend.config import Blend, Dataset
from preprocess.blend.inputs import Inputs, find_inputs
from preprocess.blend.load import check_blend, load_blend
from preprocess.errors import ConfigError
from tests.support.small_blends import SAMPLES, chat_blend, chat_record


def blend_of(adapter: str, **settings: Any) -> Blend:
    return Blend(tokenizer="t", datasets=(Dataset(name="x", adapter=adapter, samples="all", **settings),))


def inputs_of(root: Path, adapter: str, **settings: Any) -> Inputs:
    return find_inputs(blend_of(adapter, **settings), root)["x"]


def write_llava(root: Path, names: Sequence[str]) -> Path:
    (root / "llava").mkdir(parents=True)
    for name in names:
        (root / "llava" / name).write_text("[]")
    return root


def test_a_dataset_without_any_of_its_image_locations_is_a_mistake_in_the_settings(tmp_path: Path) -> None:
    write_llava(tmp_path, ["detail_23k.json", "complex_reasoning_77k.json"])
    with pytest.raises(ConfigError) as caught:
        inputs_of(tmp_path, "llava")
    assert caught.value.problems == [
        f"datasets.0 (x).images: none of coco/train2017 is below {tmp_path}; expected llava/detail_23k.json and "
        "llava/complex_reasoning_77k.json, images in coco/train2017/; set images: to where the images are"
    ]
    (tmp_path / "pictures").mkdir()
    assert inputs_of(tmp_path, "llava", images="pictures").images == (tmp_path / "pictures",)
    assert find_inputs(blend_of("llava"), tmp_path, need_images=False)["x"].images == ()


def test_one_of_several_image_locations_is_enough(tmp_path: Path) -> None:
    (tmp_path / "vqa_v2").mkdir()
    for name in ("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"):
        (tmp_path / "vqa_v2" / name).write_text("{}")
    (tmp_path / "train2014").mkdir()
    assert inputs_of(tmp_path, "vqa_v2").images == (tmp_path / "train2014",)


def test_text_alone_needs_no_image_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": []}))
    actual = inputs_of(tmp_path, "chat")
    assert actual.images == (tmp_path / ".",)
    assert actual.absent == ()


def test_an_annotation_file_that_is_not_there_is_remembered(tmp_path: Path) -> None:
    write_llava(tmp_path, ["detail_23k.json", "complex_reasoning_77K.json.part"])
    (tmp_path / "coco/train2017").mkdir(parents=True)
    assert inputs_of(tmp_path, "llava").absent == ("llava/complex_reasoning_77k.json",)
    assert inputs_of(tmp_path, "llava", annotations="llava/detail_23k.json").absent == ()


@pytest.mark.parametrize("name", sorted(ADAPTERS.keys() - {"chat"}))
def test_every_sample_dataset_is_found_whole(name: str) -> None:
    actual = inputs_of(SAMPLES, name)
    assert actual.annotations
    assert actual.images
    assert actual.absent == ()


@pytest.mark.parametrize("prompts", [[], [""], ["Describe it.", " \n"], ["Describe it.", 5], "Describe it.", None])
def test_a_list_option_holds_texts_that_are_not_blank(prompts: Any) -> None:
    (problem,) = check_blend(blend_of("coco_caption", options={"prompts": prompts}))
    assert problem == (f"datasets.0 (x).options.prompts: got {prompts!r}; expected a list of texts, none of them blank")
    assert check_blend(blend_of("coco_caption", options={"prompts": ["Describe it."]})) == []


def test_a_wrong_amount_is_reported_once(tmp_path: Path) -> None:
    blend = chat_blend(tmp_path, [chat_record(0)], dataset={"weight": "two"}, total=5)
    with pytest.raises(ConfigError) as caught:
        load_blend(blend)
    assert caught.value.problems == ["blend.yaml: datasets.0.weight: got text 'two'; expected a number"]


def test_an_unknown_key_hides_no_other_mistake(tmp_path: Path) -> None:
    blend = chat_blend(tmp_path, [chat_record(0)], sead=3)
    with pytest.raises(ConfigError) as caught:
        load_blend(blend, ["image_tokens=-1"])
    assert [problem.split(": ")[1] for problem in caught.value.problems] == ["image_tokens", "sead"]


def test_a_blank_prompt_is_a_mistake_in_the_settings() -> None:
    (problem,) = check_blend(blend_of("chat", prompt=" "))
    assert problem == "datasets.0 (x).prompt: got a blank text; expected a text"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"fields": {"log": "mesages"}},
            ".fields.log: got mesages; expected a key that chat reads; did you mean messages?",
        ),
        (
            {"fields": {"log": "ignore"}},
            ".fields.log: got ignore; expected a key that chat reads; to leave log out, write it into `keys`",
        ),
        (
            {"keys": {"video": "ignroe"}},
            ".keys.video: got ignroe; expected ignore, to leave it out, or a key that chat reads; did you mean ignore?",
        ),
        ({"fields": {"a": "id"}, "keys": {"a": "ignore"}}, ".keys.a: is in fields too; expected it once"),
        (
            {"adapter": "coco_caption", "roles": {"a": "user"}},
            ".roles: adapter coco_caption reads no names of roles; remove it",
        ),
    ],
)
def test_a_wrong_name_of_a_key_says_what_is_expected(settings: dict[str, Any], problem: str) -> None:
    (found,) = check_blend(blend_of(**{"adapter": "chat", **settings}))
    assert found == f"datasets.0 (x){problem}"


def test_a_name_far_from_all_others_gets_the_list_of_them() -> None:
    (found,) = check_blend(blend_of("minigpt4", fields={"nr": "zzz"}))
    assert found.endswith(
        "got zzz; expected a key that minigpt4 reads: caption, cocoid, file_name, filename, id, image, "
        "image_id, imgid, raw, sentences, sentid, split"
    )


def test_wrong_types_of_names_are_reported_with_their_places(tmp_path: Path) -> None:
    settings = {"fields": {"log": ["messages"]}, "roles": {"pat": "usr"}, "keys": {"video": None}}
    with pytest.raises(ConfigError) as caught:
        load_blend(chat_blend(tmp_path, [chat_record(0)], dataset=settings))
    assert sorted(caught.value.problems) == [
        "blend.yaml: datasets.0.fields.log: got a list ['messages']; expected text",
        "blend.yaml: datasets.0.keys.video: got nothing None; expected text",
        "blend.yaml: datasets.0.roles.pat: got 'usr'; expected one of user, assistant, system, tool; "
        "did you mean user?",
    ]

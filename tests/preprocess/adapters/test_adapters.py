"""What holds for every adapter: each record is in one conversation or one reject, whatever the file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation_lines import decode, encode
from preprocess.errors import DataError
from tests.support.adapting import (
    adapted,
    check_form,
    conversations,
    records_in,
    rejects,
    request_for,
    sample,
    taken,
    written,
)


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_sample_record_becomes_part_of_a_conversation(name: str, tmp_path: Path) -> None:
    made = adapted(name, tmp_path, sample(name))
    assert made
    # No LLaVA file of the samples speaks of the bricks that CGD's last pair begins with.
    assert rejects(made) == ([("CGD_INS_000030", "no_match")] if name == "llava_otter_blend" else [])
    assert taken(made) == records_in(name, sample(name), made)


@pytest.mark.parametrize("name", ADAPTERS)
def test_reading_twice_gives_the_same_and_it_survives_the_conversation_file(name: str, tmp_path: Path) -> None:
    made = adapted(name, tmp_path, sample(name))
    assert made == list(ADAPTERS[name].read(request_for(name, tmp_path, annotations=tuple(sample(name)))))
    assert conversations(made) == [decode(encode(item)) for item in conversations(made)]


@pytest.mark.parametrize("name", ADAPTERS)
def test_conversations_have_unique_ids_and_alternate_and_are_grouped_by_their_images(name: str, tmp_path: Path) -> None:
    made = conversations(adapted(name, tmp_path, sample(name)))
    assert len({item.id for item in made}) == len(made)
    for item in made:
        check_form(item)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_broken_or_missing_file_ends_the_command_with_its_name(name: str, tmp_path: Path) -> None:
    file = next(iter(sample(name)))
    written(tmp_path, sample(name))
    request = request_for(name, tmp_path, annotations=tuple(sample(name)))
    (tmp_path / file).write_text(json.dumps(sample(name)[file])[:-1])
    with pytest.raises(DataError, match=rf"{Path(file).name}, line 1, column \d+: broken JSON"):
        list(ADAPTERS[name].read(request))
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        list(ADAPTERS[name].read(request))


@pytest.mark.parametrize("name", [name for name, adapter in ADAPTERS.items() if "prompts" in adapter.options])
def test_prompts_depend_on_the_seed_and_the_record_alone(name: str, tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "annotations": [{"image_id": str(number), "caption": f"Caption {number}."} for number in range(200)]
    }
    if name == "coco_caption":
        captions = [{"id": number, "image_id": 1, "caption": f"Caption {number}."} for number in range(200)]
        document = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": captions}

    def asked(document: Any, **options: Any) -> dict[str, str]:
        made = conversations(adapted(name, tmp_path, {"a.json": document}, **options))
        return {item.sources[0].record: item.texts[0] for item in made}

    first = asked(document)
    assert first == asked({**document, "annotations": document["annotations"][::-1]})
    assert first != asked(document, seed=1)
    assert set(first.values()) == set(ADAPTERS[name].options["prompts"].default)
    assert set(asked(document, prompts=["Und?"]).values()) == {"Und?"}
    for useless in ([], [" "], [3]):
        with pytest.raises(DataError, match="prompts"):
            asked(document, prompts=useless)


def test_the_table_is_sorted_and_says_where_data_comes_from() -> None:
    assert list(ADAPTERS) == sorted(ADAPTERS)
    for adapter in ADAPTERS.values():
        assert all((adapter.annotations, adapter.images, adapter.layout, adapter.where, adapter.licence))
        for option in adapter.options.values():
            assert option.help
            assert not option.choices or option.default in option.choices

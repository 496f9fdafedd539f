"""The processor of an export gives the ids of training, whatever the published tokenizer puts in front of texts."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("peft")

import shards
from dst import ChatTokenizer, Template, load_tokenizer
from tests.support import exports, model_batches, small_blends
from tests.support.published_tokenizers import FORMS, publish
from trainer.export.export import export_model

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)

TEMPLATES = {"llama3": "llama3", "qwen": "chatml"}


@pytest.mark.parametrize(("form", "attention"), [*zip(FORMS, itertools.cycle(["causal", "mmca"]), strict=False)])
def test_a_rendered_prompt_becomes_the_ids_of_training(form: str, attention: str, tmp_path: Path) -> None:
    published = publish(form, tmp_path / "published", added=["<image>"])
    names = small_blends.write_images(tmp_path / "mine", 3)
    blend = small_blends.chat_blend(
        tmp_path,
        [small_blends.chat_record(number, images=names[number : number + 2]) for number in range(2)],
        tokenizer=str(published),
        template=TEMPLATES.get(form, "vicuna"),
        image_tokens=4,
        limits={"max_length": 512},
        image={"size": exports.SIDE, "store": "resized"},
    )
    build = shards.open(small_blends.build(blend).path)
    config = exports.config_of(build, attention=attention)
    model = exports.make_model(config, build)
    export_model(model, config, build, tmp_path / "out", step=1)

    inputs = exports.processed(tmp_path / "out", exports.sample_images(), backend="pil")

    chat = ChatTokenizer(
        Template(build.manifest.config.template, build.manifest.template), load_tokenizer(build.tokenizer_folder())
    )
    expected = exports.expanded(model, chat)
    assert inputs["input_ids"].tolist() == expected.tolist()
    if (bos := FORMS[form].bos) is not None:
        assert expected[0].tolist().count(chat.tokenizer.control[bos]) == 1

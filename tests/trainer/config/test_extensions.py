"""Encoders and projectors of other packages by name: what a configuration may say, and what a folder may not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dst.common.extensions import ExtensionOrigin
from dst.errors import ConfigError
from shards.errors import FieldError
from tests.support.extensions import EXAMPLE, install, write_module
from trainer.config.extensions import (
    differing_code,
    extension_kinds,
    extension_notes,
    model_extensions,
    recorded_extensions,
    require_consent,
)
from trainer.config.kinds import ENCODER_KINDS, PROJECTOR_KINDS
from trainer.config.run import config_from, to_tree, train_schema

ENCODER, PROJECTOR = "photo_extensions.convolutions:ENCODER", "photo_extensions.pooling:PROJECTOR"
FOLDER = Path("model")


def model(encoder: str = "tiny", projector: str = "mlp", **settings: Any) -> dict[str, Any]:
    return {
        "encoder": {"kind": encoder},
        "projector": {"kind": projector, **settings},
        "decoder": {"preset": "tiny_llama"},
    }


def problems_of(section: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_from({"build": "b", "out": "o", "model": section}, "x")
    return [problem.removeprefix("x: ") for problem in caught.value.problems]


def test_a_kind_of_another_package_may_have_any_settings_and_is_not_imported() -> None:
    section = model(ENCODER, PROJECTOR, config={"side": 2})
    section["encoder"] |= {"name": "n", "weights": "w", "layer": 3, "image_size": 8, "config": {"width": 8}}
    config = config_from({"build": "b", "out": "o", "model": section}, "x")
    assert config_from(to_tree(config), "x") == config
    assert "photo_extensions" not in sys.modules
    assert extension_kinds(to_tree(config.model)) == {"encoder": ENCODER, "projector": PROJECTOR}
    assert extension_kinds(model()) == {}


@pytest.mark.parametrize("damaged", [None, 3, {}, {"encoder": None}, {"encoder": {"kind": 3}}])
def test_a_section_that_is_damaged_names_no_extension(damaged: Any) -> None:
    assert extension_kinds(damaged) == {}


def test_names_and_settings_that_cannot_work_are_reported_together(module_folder: Path) -> None:
    install(module_folder, "my-dsvl", "1", entry_points={"dsvl.projectors/pooling": "x:P"}, files={})
    lines = problems_of({**model("hff", "poling"), "decoder": {}})
    assert [line.split(": ")[0] for line in lines] == ["model.encoder.kind", "model.projector.kind", "model.decoder"]
    assert lines[0] == (
        "model.encoder.kind: unknown encoder 'hff'; expected hf, open_clip, qwen_vl, tiny, an entry point of "
        "dsvl.encoders, or an object of your own as my_package.my_module:ENCODER; did you mean hf?"
    )
    assert lines[1].endswith("did you mean pooling?")
    assert problems_of(model("a:b:c"))[0].startswith("model.encoder.kind: got 'a:b:c'; expected the name of an encoder")
    assert problems_of(model(config={"side": 2})) == [
        "model.projector.config: got {'side': 2}; expected none, since mlp has no settings there"
    ]


def test_editors_are_offered_the_kinds_of_dsvl_and_may_be_given_others() -> None:
    parts = train_schema()["$defs"]
    for part, kinds in (("EncoderConfig", ENCODER_KINDS), ("ProjectorConfig", PROJECTOR_KINDS)):
        kind = parts[part]["properties"]["kind"]
        assert (kind["type"], kind["examples"]) == ("string", [*kinds])


def test_a_folder_may_not_name_code_that_the_user_did_not_name() -> None:
    section = model(ENCODER, PROJECTOR)
    with pytest.raises(ConfigError) as caught:
        require_consent(FOLDER, section, {}, ())
    assert caught.value.problems == [
        f"model: its {part} is the extension {name}, and opening the model runs the code of that module; if you trust "
        f"it, add --allow-extension {name} (in Python: allow_extensions=('{name}',))"
        for part, name in (("encoder", ENCODER), ("projector", PROJECTOR))
    ]
    with pytest.raises(ConfigError, match="its projector is the extension"):
        require_consent(FOLDER, section, {}, [ENCODER])
    require_consent(FOLDER, section, {}, [ENCODER, PROJECTOR])
    require_consent(FOLDER, model(), {}, ())


def test_an_entry_point_needs_no_consent_but_must_be_installed(module_folder: Path) -> None:
    origin = ExtensionOrigin(name="convolutions", distribution="my-dsvl", version="1.0", sha256="1" * 64)
    with pytest.raises(ConfigError) as caught:
        require_consent(FOLDER, model("convolutions"), {"encoder": origin}, ())
    (line,) = caught.value.problems
    assert line.startswith("model: model.encoder.kind: unknown encoder 'convolutions'; expected ")
    assert line.endswith("; the model was made with convolutions of my-dsvl 1.0")
    install(module_folder, "my-dsvl", "1.0", entry_points={"dsvl.encoders/convolutions": "x:E"}, files={})
    require_consent(FOLDER, model("convolutions"), {"encoder": origin}, ())


def test_other_code_than_the_recorded_is_one_line_for_each_part(module_folder: Path) -> None:
    write_module(module_folder, "mine", "ENCODER = PROJECTOR = None")
    section = model("mine:ENCODER", "mine:PROJECTOR")
    record = {"extensions": model_extensions(section)}
    recorded = recorded_extensions(record)
    assert extension_notes(section, recorded) == []
    assert extension_notes(section, {}) == []
    assert extension_notes(model(), recorded) == []
    digest = recorded["encoder"].sha256[:12]
    other = replace(recorded["encoder"], sha256="1" * 64)
    assert extension_notes(section, {**recorded, "encoder": other}) == [
        "model.encoder.kind: mine:ENCODER: recorded code of no distribution (sha256 111111111111), installed code of "
        f"no distribution (sha256 {digest})"
    ]
    released = replace(recorded["projector"], distribution="my-dsvl", version="1.0")
    assert extension_notes(section, {**recorded, "projector": released}) == [
        "model.projector.kind: mine:PROJECTOR: recorded my-dsvl 1.0, installed code of no distribution"
    ]
    with pytest.raises(FieldError, match=r"extensions\.encoder\.sha256: missing; expected text"):
        recorded_extensions({"extensions": {"encoder": {"name": "a", "distribution": None, "version": None}}})


def test_ranks_with_different_code_are_refused_with_both() -> None:
    def entry(**changed: str) -> dict[str, Any]:
        return {"name": "a:E", "distribution": "my-dsvl", "version": "1.0", "sha256": "1" * 64, **changed}

    ranks = [{"encoder": entry(), "projector": entry()} for _ in range(3)]
    assert differing_code(ranks) == []
    assert differing_code([{}, {}]) == []
    ranks[2]["projector"] = entry(version="1.1", sha256="2" * 64)
    assert differing_code(ranks) == [
        "model.projector.kind: a:E: ranks have different code: my-dsvl 1.0 (sha256 111111111111) and my-dsvl 1.1 "
        "(sha256 222222222222); install the same version on every node"
    ]


def test_the_example_configuration_names_the_objects_of_its_package() -> None:
    text = (EXAMPLE / "train.yaml").read_text(encoding="utf-8")
    assert ENCODER in text
    assert PROJECTOR in text

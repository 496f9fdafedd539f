"""A LLaVA folder that no run can begin with is refused in one line: another family, damaged, or of another build."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # before transformers, which looks for torchvision

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("open_clip")

from dst.errors import ConfigError
from tests.support import exports, llava_starts, model_batches
from tests.support.exports import CLIP, SIGLIP
from tests.support.llava_folders import LLAMA, write_llava
from tests.support.llava_starts import edited, refusal, started

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build_of = pytest.fixture(scope="module")(exports.builds)
llava = pytest.fixture(scope="module")(llava_starts.llava)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"model_type": "llava_next"},
            "is a llava_next model: LLaVA-NeXT, which cuts images into tiles; expected llava",
        ),
        (
            {"model_type": "qwen2_5_vl"},
            "is a qwen2_5_vl model, another family of vision-language models; expected llava",
        ),
        ({"mm_vision_tower": "openai/clip"}, "is a model of LLaVA's own repository, whose files have other names"),
        (
            {"model_type": "llama", "vision_config": None},
            "is a llama, a language model alone; set model.decoder.name and model.encoder instead",
        ),
        ({"vision_config": {**CLIP, "model_type": "dinov2"}}, "its vision tower is a dinov2; expected one of clip"),
        ({"vision_feature_layer": [-2, -1]}, "its vision_feature_layer is [-2, -1]; expected one layer, such as -2"),
        ({"projector_hidden_act": "silu"}, "its projector_hidden_act is 'silu'; expected 'gelu', as in LLaVA-1.5"),
        ({"text_config": None}, "its config.json lacks vision_config or text_config"),
        ({"vision_config": SIGLIP}, "its vision_feature_select_strategy is 'default', which drops the first patch"),
    ],
)
def test_what_is_not_a_llava_is_refused_by_name(
    settings: dict[str, Any], problem: str, build_of: exports.MakeBuild, llava: Path, tmp_path: Path
) -> None:
    start = edited(shutil.copytree(llava, tmp_path / "llava"), **settings)
    assert problem in refusal(tmp_path, build_of(), start)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({**LLAMA, "model_type": "cohere"}, "its decoder CohereForCausalLM scales its logits, LLaVA does not"),
        ({**LLAMA, "model_type": "phi"}, "the head of its decoder PhiForCausalLM has a bias, LLaVA's has none"),
    ],
)
def test_a_decoder_with_which_llava_computes_other_logits_is_refused_before_its_weights_are_loaded(
    text: dict[str, Any], reason: str, build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    write_llava(tmp_path / "llava", build_of(), text=text)
    with pytest.raises(ConfigError) as caught:
        started(tmp_path, build_of(), tmp_path / "llava")
    assert caught.value.problems == [f"model.init_from: {tmp_path / 'llava'}: {reason}; choose another model"]


def test_damaged_and_incomplete_folders_are_refused_in_one_line(
    build_of: exports.MakeBuild, llava: Path, tmp_path: Path
) -> None:
    def copy(name: str) -> Path:
        return shutil.copytree(llava, tmp_path / name)

    (copy("no weights") / "model.safetensors").unlink()
    assert "has no weights as safetensors" in refusal(tmp_path, build_of(), tmp_path / "no weights")
    (copy("no config") / "config.json").unlink()
    assert "no config: has no config.json; expected a folder that" in refusal(
        tmp_path, build_of(), tmp_path / "no config"
    )
    (copy("cut config") / "config.json").write_text('{"model_type": ')
    assert "its config.json is not JSON" in refusal(tmp_path, build_of(), tmp_path / "cut config")
    edited(copy("grey"), "preprocessor_config.json", image_mean=[0.5])
    assert "image processor's image_mean is [0.5]; expected three numbers" in refusal(
        tmp_path, build_of(), tmp_path / "grey"
    )
    (copy("cut processor") / "preprocessor_config.json").write_text("[" * 100_000)
    (tmp_path / "cut processor/processor_config.json").unlink()
    assert "its preprocessor_config.json is not JSON" in refusal(tmp_path, build_of(), tmp_path / "cut processor")
    factors: tuple[object, ...] = ("1/255", 10**400, 1, [])
    for number, factor in enumerate(factors):
        edited(copy(f"scaled {number}"), "preprocessor_config.json", rescale_factor=factor)
        assert "does not scale pixels by 1/255" in refusal(tmp_path, build_of(), tmp_path / f"scaled {number}")
    edited(copy("huge"), "preprocessor_config.json", image_std=[1, 1, 10**400])
    assert "expected three numbers" in refusal(tmp_path, build_of(), tmp_path / "huge")
    from safetensors.torch import save_file

    tensors = exports.tensors_in(copy("no projector"))
    for lost in [name for name in tensors if "multi_modal_projector.linear_2" in name]:
        del tensors[lost]
    save_file(tensors, tmp_path / "no projector/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(trainer.errors.TrainError, match=r"the weights lack multi_modal_projector\.linear_2\.weight"):
        started(tmp_path, build_of(), tmp_path / "no projector")


def test_a_build_of_another_tokenizer_is_refused(build_of: exports.MakeBuild, llava: Path, tmp_path: Path) -> None:
    start = shutil.copytree(llava, tmp_path / "llava")
    tokenizer = json.loads((start / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    token_a, token_b = [token for token in vocabulary if len(token) == 1][:2]
    vocabulary[token_a], vocabulary[token_b] = vocabulary[token_b], vocabulary[token_a]
    (start / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert f"rebuild with tokenizer: {start}, or choose the model of that tokenizer" in refusal(
        tmp_path, build_of(), start
    )

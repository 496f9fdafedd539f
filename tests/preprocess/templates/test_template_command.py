"""`dsvl-prep template`, `init --tokenizer`, and what a build says of the folder of its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import dst
import shards
from tests.support.commands import dsvl_prep
from tests.support.published_tokenizers import publish
from tests.support.small_blends import build, chat_blend, chat_record, write_chat, write_images

FOLDER = Path(__file__).parent / "published"
LLAVA = (FOLDER / "llava_1_5.jinja").read_text(encoding="utf-8")


def template_of(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def llava_folder(folder: Path) -> Path:
    """The layout of llava-1.5-7b-hf: `<image>` and `<pad>` behind Llama's vocabulary."""
    publish("llama2", folder, added=("<image>", "<pad>"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    more = {"pad_token": "<pad>", "padding_side": "left", "processor_class": "LlavaProcessor", "image_token": "<image>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | more))
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    added = {token["content"]: token["id"] for token in vocabulary if token["content"] in ("<image>", "<pad>")}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": LLAVA}))
    processor = {"image_token": "<image>", "patch_size": 14, "processor_class": "LlavaProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"}))
    return folder


def qwen_folder(folder: Path, template: str, **config: Any) -> Path:
    """The layout of LLaVA-Interleave: vocab.json and merges.txt next to tokenizer.json."""
    publish("qwen", folder, added=("<image>",))
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    known = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(known | {"chat_template": template} | config))
    return folder


def blend_of(folder: Path, tokenizer: Path, **settings: Any) -> Path:
    names = write_images(folder / "mine", 2)
    records = [chat_record(0, images=names, rounds=2), chat_record(1, rounds=3)]
    return chat_blend(folder, records, tokenizer=str(tokenizer), **settings)


@pytest.mark.parametrize("kind", ["llava_1_5", "llava_interleave", "qwen2_5"])
def test_a_build_with_the_copy_has_the_ids_of_transformers_for_the_folder(kind: str, tmp_path: Path) -> None:
    """The folder's tokenizer.json on its own template's text: its post-processor puts the begin token in front.

    Not its LlamaTokenizer, which in transformers 5 leaves out a space that tokenizer.json puts behind special tokens.
    """
    from transformers import PreTrainedTokenizerFast

    is_llava = kind == "llava_1_5"
    folder = llava_folder(tmp_path / "model") if is_llava else qwen_folder(tmp_path / "model", template_of(kind))
    done = dsvl_prep(
        "template", "--from", folder, "--out", "mine.jinja", *(["--end-token"] if is_llava else []), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    blend = blend_of(tmp_path, folder, template="./mine.jinja")
    build(blend)
    theirs: Any = PreTrainedTokenizerFast.from_pretrained(folder)
    for sample in shards.open(tmp_path / "build")["train"]:
        record = chat_record(0, images=["a", "b"], rounds=2) if sample.images else chat_record(1, rounds=3)
        messages = []
        for message in record["messages"]:
            content = [{"type": "text", "text": message["content"].replace("<image>\n", "")}]
            images = [{"type": "image"}] * message["content"].count("<image>")
            messages.append({**message, "content": [*images, *content]})
        if kind == "qwen2_5":
            messages = record["messages"]
        text = theirs.apply_chat_template(messages, tokenize=False, chat_template=template_of(kind))
        if is_llava:
            for message in record["messages"][1::2]:
                text = text.replace(message["content"], message["content"] + "</s>")
        assert sample.ids.tolist() == theirs(text)["input_ids"]


def test_the_tokens_of_a_llava_folder_stay(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = llava_folder(tmp_path / "model")
    tokenizer = dst.load_tokenizer(folder)
    vocabulary = json.loads((folder / "added_tokens.json").read_text())
    assert tokenizer.image_id == vocabulary["<image>"]
    assert tokenizer.control["<pad>"] == vocabulary["<pad>"]
    assert tokenizer.new_tokens == {}
    tokenizer.save(tmp_path / "saved", LLAVA)
    saved: Any = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (saved.pad_token, saved.pad_token_id) == ("<pad>", vocabulary["<pad>"])
    assert len(saved) == len(AutoTokenizer.from_pretrained(folder))


def test_a_build_names_the_tokens_that_it_adds(tmp_path: Path) -> None:
    folder = publish("llama2", tmp_path / "model")
    report = build(blend_of(tmp_path, folder, template="vicuna"))
    index = dst.load_tokenizer(folder).image_id
    assert report.notes == (f"tokenizer {folder}: the build adds to it: <image> (id {index})",)


@pytest.mark.parametrize(
    ("form", "published", "name"),
    [("qwen", "chatml", "chatml"), ("llama2", "llama2", "llama2"), ("llama3", "llama3", "llama3")],
)
def test_a_built_in_template_with_the_same_texts_is_proposed_by_name(
    form: str, published: str, name: str, tmp_path: Path
) -> None:
    folder = publish(form, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template_of(published))
    done = dsvl_prep("template", "--from", folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"the built-in template {name} renders the same texts" in done.stdout
    assert f"  template: {name}\n" in done.stdout
    assert not list(tmp_path.glob("*.jinja"))
    other = "vicuna" if name != "vicuna" else "llama2"
    [_, note] = build(blend_of(tmp_path, folder, template=other)).notes
    assert note.endswith(f"renders other texts than template: {other}, and the same as template: {name}")
    assert len(build(blend_of(tmp_path, folder, template=name), out=tmp_path / "other").notes) == 1
    write_chat(tmp_path / "data", [chat_record(0)])
    assert dsvl_prep("init", "--root", "data", "--out", "new.yaml", "--tokenizer", folder, cwd=tmp_path).returncode == 0
    written = yaml.safe_load((tmp_path / "new.yaml").read_text())
    assert (written["tokenizer"], written["template"]) == ("model", name)


def test_a_system_prompt_of_its_own_is_proposed_as_a_variable(tmp_path: Path) -> None:
    folder = publish("llama2", tmp_path / "model")
    source = dst.load_template("vicuna", {"system_prompt": "Be kind."}).source
    (folder / "chat_template.jinja").write_text(source)
    done = dsvl_prep("template", "--from", folder, cwd=tmp_path)
    assert "  template: vicuna\n  variables: {system_prompt: Be kind.}\n" in done.stdout
    write_chat(tmp_path / "data", [chat_record(0)])
    dsvl_prep("init", "--root", "data", "--out", "new.yaml", "--tokenizer", folder, cwd=tmp_path)
    written = yaml.safe_load((tmp_path / "new.yaml").read_text())
    assert (written["template"], written["variables"]) == ("vicuna", {"system_prompt": "Be kind."})


def test_a_template_that_no_built_in_one_equals_is_named_with_the_command(tmp_path: Path) -> None:
    folder = qwen_folder(tmp_path / "model", template_of("qwen2_5"))
    [note] = build(blend_of(tmp_path, folder, template="chatml")).notes
    assert note.endswith(f"for a copy that can be trained on: dsvl-prep template --from {folder}")
    write_chat(tmp_path / "data", [chat_record(0)])
    dsvl_prep("init", "--root", "data", "--out", "new.yaml", "--tokenizer", folder, cwd=tmp_path)
    assert (
        f"template: visualchat  # that of the tokenizer: dsvl-prep template --from {folder}"
        in (tmp_path / "new.yaml").read_text()
    )


def test_the_copy_is_shown_with_what_differs_from_the_original(tmp_path: Path) -> None:
    folder = llava_folder(tmp_path / "llava-1.5-7b-hf")
    refused = dsvl_prep("template", "--from", folder, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "it ends an answer with no token" in refused.stderr
    assert "--end-token writes </s> there" in refused.stderr
    done = dsvl_prep("template", "--from", folder, "--end-token", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in (
        "<s>USER: <image>\n<image>\nWhich bus is older? ASSISTANT: The first one.</s> USER: <image>\n",
        "- the copy writes <s> first, which the folder's tokenizer puts there itself\n",
        "- the copy writes </s> after each answer; the original writes no token there\n",
        "- the original's own marks are replaced",
        "wrote llava-1.5-7b-hf.jinja; use it in the blend:\n  template: ./llava-1.5-7b-hf.jinja\n",
    ):
        assert line in done.stdout
    written = (tmp_path / "llava-1.5-7b-hf.jinja").read_text()
    assert written.startswith(f"{{# {folder}/chat_template.json, with marks around what is trained +#}}")
    again = dsvl_prep("template", "--from", folder, "--end-token", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (
        2,
        "error: --out llava-1.5-7b-hf.jinja: exists already; choose another name\n",
    )


@pytest.mark.parametrize(
    ("chat_template", "arguments", "message"),
    [
        (None, [], "it has no chat template; expected chat_template.jinja"),
        ([{"name": "rag", "template": "x"}, {"name": "plain", "template": "y"}], [], "expected one of its templates: "),
        ([{"name": "default", "template": "x"}], ["--name", "defaults"], "did you mean default?"),
        ([{"name": 3}], [], "chat_template has [3, null]; expected a name and a template"),
        ("chatml", ["--out", "a.txt"], "--out a.txt: got the ending '.txt'; expected .jinja or .j2"),
        ("chatml", ["--set", "date=1"], "--set date=1: expected NAME=VALUE of a name that it leaves open: none"),
        ("{{ strftime_now('%d') }}", [], "--set date_string='26 Jul 2024' sets one"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    chat_template: Any, arguments: list[str], message: str, tmp_path: Path
) -> None:
    value = template_of(chat_template) if chat_template == "chatml" else chat_template
    qwen_folder(tmp_path / "model", value)
    done = dsvl_prep("template", "--from", "model", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_a_folder_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    done = dsvl_prep("template", "--from", "./nowhere", cwd=tmp_path)
    assert done.stderr == ("error: --from ./nowhere: no such folder; expected a model's folder, or its id on the hub\n")


def test_a_date_is_set_in_the_copy(tmp_path: Path) -> None:
    source = (
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d') %}{% endif %}"
        "{{ date_string + '\\n' }}" + template_of("chatml")
    )
    folder = qwen_folder(tmp_path / "model", "x", chat_template=[{"name": "default", "template": source}])
    done = dsvl_prep("template", "--from", folder, "--set", "date_string=26 Jul 2024", "--out", "a.jinja", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = dst.load_template(tmp_path / "a.jinja").render(
        [{"role": "user", "content": "Hi"}], bos_token="", eos_token=""
    )
    assert text.text == "26 Jul 2024\n<|im_start|>user\nHi<|im_end|>\n"

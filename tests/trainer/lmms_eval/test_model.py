"""The classes that lmms-eval calls, in a stand-in for it: what they are given, and what they return."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from dst.errors import ConfigError
from tests.support import exports, lmms_eval_host, model_batches
from tests.support.exports import small_build
from tests.support.lmms_eval_host import GenerationResult, Instance, Task
from tests.support.paths import ROOT
from tests.support.talks import PHOTOS
from trainer.errors import TrainError
from trainer.inference.conversation import Exchange, answer_text, prompt_of
from trainer.inference.generate import Generator, Sampling
from trainer.inference.images import load_image
from trainer.inference.open_model import open_model

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build = pytest.fixture(scope="module")(small_build)
exported = pytest.fixture(scope="module")(exports.small_export)
host = pytest.fixture(lmms_eval_host.model_module)

FEW = {"max_new_tokens": 4}


def documents() -> list[dict[str, Any]]:
    texts = ["Which is older?", "What is it?", "What is 2 + 2?"]
    images = [[Image.open(photo).convert("RGB") for photo in PHOTOS[:count]] for count in (2, 1, 0)]
    return [{"text": text, "images": shown} for text, shown in zip(texts, images, strict=True)]


def spoken(exported: Path, sampling: Sampling) -> list[str]:
    """What a conversation says of each document, from the files of its images."""
    speaker, _ = open_model(exported)
    generator = Generator(speaker.model, speaker.chat_tokenizer)
    answers = []
    for count, document in zip((2, 1, 0), documents(), strict=True):
        images = tuple(load_image(photo, speaker.geometry) for photo in PHOTOS[:count])
        exchange = Exchange(question=document["text"], images=images)
        prompt = prompt_of([exchange], speaker, end_id=generator.end_id, limit=generator.limit)
        tokens = list(generator.session().answer(prompt, sampling))
        answers.append(answer_text(speaker.chat_tokenizer.tokenizer, tokens, prompt.end_id))
    return answers


@pytest.mark.parametrize("batch_size", [1, "2"])
@pytest.mark.parametrize("form", ["DsvlSimple", "DsvlChat"])
def test_both_forms_of_a_task_get_the_answers_of_a_conversation(
    host: ModuleType, exported: Path, form: str, batch_size: int | str
) -> None:
    task = Task(documents(), FEW)
    model = getattr(host, form)(pretrained=str(exported), batch_size=batch_size)
    task.put_into(model)
    results = model.generate_until(task.chat() if form == "DsvlChat" else task.simple())
    assert [result.text for result in results] == spoken(exported, Sampling(max_new_tokens=4))
    assert all(result.token_counts.input_tokens > 0 for result in results)
    assert all(1 <= result.token_counts.output_tokens <= 4 for result in results)


def test_a_question_that_is_repeated_gets_other_samples_and_the_same_ones_in_the_next_run(
    host: ModuleType, exported: Path
) -> None:
    task = Task(documents()[:2], {"max_new_tokens": 6, "temperature": 1.0})
    first, second = task.simple()
    texts = []
    for batch_size in (1, 3):
        model = host.DsvlSimple(pretrained=str(exported), batch_size=batch_size)
        task.put_into(model)
        texts.append([result.text for result in model.generate_until([first, first, first, second])])
    assert texts[0] == texts[1]
    assert len(set(texts[0][:3])) > 1


def test_the_lowest_value_of_a_choice_is_its_loss_and_no_string(host: ModuleType, exported: Path) -> None:
    task = Task(documents())
    model = host.DsvlSimple(pretrained=str(exported), batch_size=4)
    task.put_into(model)
    results = model.loglikelihood(task.choices(["yes", "a red bus", "yes"]))
    assert all(isinstance(result, GenerationResult) for result in results)
    pairs = [result.text for result in results]
    assert all(isinstance(loss, float) and loss > 0 and isinstance(greedy, bool) for loss, greedy in pairs)
    assert pairs[0] == pytest.approx(pairs[2])
    assert pairs[0] != pytest.approx(pairs[1])
    with pytest.raises(TrainError, match="acc_mutual_info"):
        model.loglikelihood([Instance(("", "yes"))])


def simple_rounds(task: Task, next_round: Callable[..., Any]) -> list[Instance]:
    return [Instance((*request.args[:3], next_round, *request.args[3:])) for request in task.simple()]


@pytest.mark.parametrize("form", ["DsvlSimple", "DsvlChat"])
def test_rounds_are_asked_until_the_task_ends_them(host: ModuleType, exported: Path, form: str) -> None:
    task = Task(documents(), FEW)
    model = getattr(host, form)(pretrained=str(exported), batch_size=2)
    task.put_into(model)
    seen: list[tuple[int, list[str], Any]] = []

    def simple(document: Any, *, previous_output: list[str], round_idx: int, previous_round_info: Any) -> Any:
        seen.append((round_idx, previous_output, previous_round_info))
        return document["images"], "And now?", round_idx == 2, previous_output, "notes"

    def chat(document: Any, round_idx: int | None = None, **arguments: Any) -> Any:
        if round_idx is None:
            return [{"role": "user", "content": document["text"]}]
        _, text, is_over, output, info = simple(document, round_idx=round_idx, **arguments)
        return [{"role": "user", "content": text}], is_over, output, info

    requests = task.chat(chat) if form == "DsvlChat" else simple_rounds(task, simple)
    results = model.generate_until_multi_round(requests)
    assert [len(texts) for texts in results] == [2, 2, 2]
    assert [(number, len(output), info) for number, output, info in seen] == [(1, 1, None)] * 3 + [(2, 2, "notes")] * 3


def test_what_a_task_makes_of_its_rounds_is_not_made_a_string(host: ModuleType, exported: Path) -> None:
    task = Task(documents()[:1], FEW)
    model = host.DsvlSimple(pretrained=str(exported))
    task.put_into(model)
    requests = simple_rounds(task, lambda document, **_: (None, None, True, ["query", None], None))
    assert model.generate_until_multi_round(requests) == [GenerationResult(text=["query", None])]


def test_rounds_without_an_end_are_an_error(host: ModuleType, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_MOST_ROUNDS", 3)
    task = Task(documents()[2:], {"max_new_tokens": 1})
    model = host.DsvlSimple(pretrained=str(exported))
    task.put_into(model)
    requests = simple_rounds(task, lambda document, previous_output, **_: ([], "?", False, previous_output, None))
    with pytest.raises(TrainError, match="task task, document 0: has not ended after 3 rounds"):
        model.generate_until_multi_round(requests)


def test_settings_of_a_task_that_cannot_be_used_name_it(host: ModuleType, exported: Path) -> None:
    task = Task(documents(), {"num_beams": 5})
    model = host.DsvlSimple(pretrained=str(exported))
    task.put_into(model)
    with pytest.raises(TrainError, match="task task: generation_kwargs: num_beams: got 5"):
        model.generate_until(task.simple())


def test_tasks_that_set_no_length_get_that_of_the_model_arguments(host: ModuleType, exported: Path) -> None:
    task = Task(documents()[2:], {})
    model = host.DsvlSimple(pretrained=str(exported), max_new_tokens=2)
    task.put_into(model)
    (result,) = model.generate_until(task.simple())
    assert result.token_counts.output_tokens <= 2


def test_all_problems_of_the_model_arguments_are_reported_together(host: ModuleType) -> None:
    with pytest.raises(ConfigError) as caught:
        host.DsvlChat(batch_size="auto", max_new_token=5, max_new_tokens="5", skip_too_long="no")
    text = str(caught.value)
    assert "model_args.max_new_token: unknown" in text
    assert "max_new_tokens" in text.splitlines()[0]
    for problem in (
        "pretrained: missing",
        "batch_size: got 'auto'",
        "max_new_tokens: got '5'",
        "skip_too_long: got 'no'",
    ):
        assert problem in text


def test_a_model_can_be_freed_for_judges_that_run_after_it(host: ModuleType, exported: Path) -> None:
    model = host.DsvlChat(pretrained=str(exported))
    assert model.device == torch.device("cpu")
    model.clean()
    assert not any(isinstance(value, torch.nn.Module) or hasattr(value, "speaker") for value in vars(model).values())


def test_the_entry_point_names_both_classes_and_imports_neither_torch_nor_lmms_eval(host: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["entry-points"]["lmms_eval.models"]["dsvl"].partition(":")
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert not {"torch", "transformers", "lmms_eval"} & set(done.stdout.split())
    manifest = getattr(sys.modules[module], name)()
    assert manifest.model_id == "dsvl"
    for path, is_simple in ((manifest.simple_class_path, True), (manifest.chat_class_path, False)):
        assert path.rpartition(".")[0] == host.__name__
        assert getattr(host, path.rpartition(".")[2]).is_simple is is_simple


def test_an_error_in_one_of_several_processes_ends_it_so_that_the_launcher_ends_the_others(
    exported: Path, host: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = host.DsvlChat(pretrained=str(exported))
    task = Task([{"text": "Watch.", "images": ["a.mp4"]}], FEW)
    task.put_into(model)
    monkeypatch.setenv("RANK", "1")
    for processes, expected in (("1", TrainError), ("2", SystemExit)):
        monkeypatch.setenv("WORLD_SIZE", processes)
        with pytest.raises(expected) as failed:
            model.generate_until(task.chat())
    assert isinstance(failed.value, SystemExit)
    assert failed.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "process" in line]
    assert line.startswith("process 1: task task, document 0: a.mp4: ")
    with pytest.raises(SystemExit):
        host.DsvlChat(pretrained="")
    assert "process 1: model_args.pretrained: missing" in capsys.readouterr().err

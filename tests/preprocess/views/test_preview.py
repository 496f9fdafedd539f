"""What `render` shows of the changes that a template or a prompt makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocess.views.preview import print_rendered
from tests.support.small_blends import chat_record, write_chat

RECORD = {
    "id": "a",
    "images": ["0.jpg", "1.jpg"],
    "messages": [
        {"role": "user", "content": "Is <image> older than <image>?"},
        {"role": "assistant", "content": "Yes."},
    ],
}


@pytest.mark.parametrize(
    ("template", "settings", "is_noted"),
    [("vicuna", [], True), ("vicuna", ["variables.references=true"], False), ("chatml", [], False)],
)
def test_images_that_a_template_moves_are_noted(
    template: str, settings: list[str], is_noted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_rendered("chat", write_chat(tmp_path, [RECORD]), limit=1, template=template, settings=settings)
    shown = capsys.readouterr().out
    assert ("  notes: images_moved\n" in shown) == is_noted
    assert ("Image 2" in shown) == bool(settings)


def test_the_prompt_of_a_dataset_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_chat(tmp_path, [chat_record(0)])
    print_rendered("chat", root, limit=1, template="chatml", settings=["prompt=One word."])
    assert "Question 0 of record 0?\nOne word.<|im_end|>" in capsys.readouterr().out

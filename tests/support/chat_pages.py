"""What a person does on the chat page, by Playwright. page: playwright.sync_api.Page, here and in tests."""

from __future__ import annotations

import base64
import json
from typing import Any

COMPLETIONS = "/v1/chat/completions"


def ask(page: Any, question: str, *, answered: bool = True) -> None:
    """Type a question, send it with Enter and wait for its answer."""
    number = page.locator(".round").count() + 1
    page.locator("#text").fill(question)
    page.locator("#text").press("Enter")
    if answered:
        wait_for_answer(page, number)


def wait_for_answer(page: Any, number: int) -> None:
    """Until there are this many rounds and no answer is being generated."""
    page.wait_for_function(
        """(number) => document.querySelectorAll(".round").length === number
            && document.querySelector("[data-part=stop]").hidden""",
        arg=number,
    )


def choose(page: Any, **images: bytes) -> None:
    """Choose image files with the file dialog: name without .png -> content."""
    files = [{"name": f"{name}.png", "mimeType": "image/png", "buffer": image} for name, image in images.items()]
    page.locator("#file").set_input_files(files)


def drop(page: Any, files: dict[str, tuple[str, bytes]]) -> None:
    """Drop files on the page: name -> media type and content."""
    packed = [[name, kind, base64.b64encode(data).decode()] for name, (kind, data) in files.items()]
    transfer = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, type, data] of files) {
                const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type }));
            }
            return transfer;
        }""",
        packed,
    )
    for kind in ("dragover", "drop"):
        page.dispatch_event("main", kind, {"dataTransfer": transfer})


def paste(page: Any, image: bytes, text: str | None = None) -> None:
    """Put an image into the clipboard, with or without a text, and press Ctrl+V in the question."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async ([data, text]) => {
            const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
            const item = { "image/png": new Blob([bytes], { type: "image/png" }) };
            if (text !== null) item["text/plain"] = new Blob([text], { type: "text/plain" });
            await navigator.clipboard.write([new ClipboardItem(item)]);
        }""",
        [base64.b64encode(image).decode(), text],
    )
    page.locator("#text").press("Control+V")


def thumbnails(page: Any) -> list[str]:
    """Alternative texts of the images that wait for the next question."""
    return [image.get_attribute("alt") for image in page.locator("#composer .picture img").all()]


def questions(page: Any) -> list[str]:
    return [str(text) for text in page.locator(".question .text").all_inner_texts()]


def answers(page: Any) -> list[str]:
    return [str(text) for text in page.locator(".answer .text").all_inner_texts()]


def exported(page: Any) -> dict[str, Any]:
    """The line that the button Export downloads."""
    with page.expect_download() as download:
        page.locator("#export").click()
    assert download.value.suggested_filename.endswith(".jsonl")
    with open(download.value.path(), encoding="utf-8") as file:
        text = file.read()
    assert text.count("\n") == 1
    record: dict[str, Any] = json.loads(text)
    return record

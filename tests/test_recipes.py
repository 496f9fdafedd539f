"""The blend entries of docs/recipes.md compile excerpts in exactly the layout in which the data is published."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import shards
from preprocess.adapters.parsing.lettered_options import LETTER
from preprocess.compiler.report import DatasetReport
from preprocess.views.inspect import inspect_samples
from tests.support.adapting import written
from tests.support.fetched import fetched_images
from tests.support.paths import ROOT
from tests.support.small_blends import build, jpeg, write_blend

PHRASE = "Answer the question using a single word or phrase."

Compile = Callable[[str], DatasetReport]


def entries() -> dict[str, dict[str, Any]]:
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return {entry["name"]: entry for block in blocks for entry in yaml.safe_load(block)["datasets"]}


def talk(*texts: str, first: str = "human") -> list[dict[str, str]]:
    roles = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": roles[place % 2], "value": words} for place, words in enumerate(texts)]


def save(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(zlib.crc32(name.encode())))


def gif() -> bytes:
    data = io.BytesIO()
    Image.new("P", (8, 8)).save(data, "GIF")
    return data.getvalue()


@pytest.fixture
def compile_entry(tmp_path: Path) -> Compile:
    def compiled(name: str) -> DatasetReport:
        blend = write_blend(
            tmp_path / "blend.yaml", [entries()[name]], template="vicuna", limits={"max_reject_share": 1}
        )
        return build(blend).datasets[name]

    return compiled

    return compiled


def ids(folder: Path, dataset: str) -> list[str]:
    build = shards.open(folder / "build")
    return [sample.metadata["id"] for sample in build["train"] if sample.metadata["dataset"] == dataset]


def test_mix665k(tmp_path: Path, compile_entry: Compile) -> None:
    images = {
        "000000033471": "coco/train2017/000000033471.jpg",
        "2354786": "gqa/images/2354786.jpg",
        "0679894543": "ocr_vqa/images/0679894543.jpg",
        "1e8d0a1c3f0f8a2b": "textvqa/train_images/1e8d0a1c3f0f8a2b.jpg",
        "VG_100K_2/2331136": "vg/VG_100K_2/2331136.jpg",
    }
    save(tmp_path / "data", *images.values())
    (tmp_path / "data/ocr_vqa/images/0679894543.jpg").write_bytes(gif())  # renamed, as LLaVA's script does
    (tmp_path / "data/ocr_vqa/images/1565847392.gif").write_bytes(gif())  # not renamed
    region = "Please provide a short description for this region: [0.2, 0.11, 0.4, 0.52]."
    asked = talk(f"<image>\nWhat is it?\n{PHRASE}", "Bus", "And its colour?", "Red", region, "A wheel.")
    described = talk("Describe it.\n<image>", "A bus.")
    records: list[dict[str, Any]] = [
        *({"id": number, "image": image, "conversations": asked} for number, image in images.items()),
        {"id": "000000033471", "image": images["000000033471"], "conversations": described},
        {"id": "1565847392", "image": "ocr_vqa/images/1565847392.jpg", "conversations": asked},
        {"id": "wgByO4Y_0", "model": "", "conversations": talk("Write <image> in HTML.", "Use <img>.")},
        {"id": "zU5lNXw_50", "model": "", "conversations": talk("Sure.", "And then?", "Test it.", first="gpt")},
    ]
    written(tmp_path, {"data/llava_v1_5_mix665k.json": records})
    report = compile_entry("mix665k")
    assert (report.records, report.samples, report.images) == (9, 8, 6)
    assert (report.rejects, report.notes) == ({"image_missing": 1}, {"control_text": 1, "leading_answer": 1})
    label = "llava_v1_5_mix665k"
    own = [*images, "000000033471#5", "wgByO4Y_0", "zU5lNXw_50"]
    assert ids(tmp_path, "mix665k") == [f"{label}/{identity}" for identity in own]


def test_ocr_vqa(tmp_path: Path, compile_entry: Compile) -> None:
    books: dict[str, dict[str, Any]] = {
        number: {
            "imageURL": f"http://ecx.images-amazon.com/images/I/{number}.jpg",
            "questions": ["Who wrote this book?", "What is the title?"],
            "answers": ["M. Sample", "Clocks"],
            "title": "Clocks",
            "authorName": "M. Sample",
            "genre": "Science",
            "split": split,
        }
        for number, split in (("1565847392", 1), ("0934120565", 3), ("0712345678", 1))
    }
    written(tmp_path / "data", {"OCR_VQA/dataset.json": books})
    there = [book["imageURL"] for book in books.values()][:2]
    fetched_images(tmp_path / "fetched", {url: jpeg(number) for number, url in enumerate(there)})
    report = compile_entry("ocr_vqa")
    assert (report.records, report.splits, report.rejects) == (3, {"train": 1, "eval": 1}, {"image_missing": 1})


def test_llava_next(tmp_path: Path, compile_entry: Compile) -> None:
    columns: dict[str, list[Any]] = {
        "id": ["000000033471", "000000033471", "identity_0"],
        "conversations": [talk("<image>\nWhat?", "A bus."), talk("<image>\nWhy?", "So."), talk("Hello", "Hello.")],
        "data_source": ["llava-1.5", "sharegpt4v", "sharegpt"],
        "image": [{"bytes": jpeg(number), "path": None} for number in range(2)] + [None],
    }
    folder = tmp_path / "LLaVA-NeXT-Data/data"
    folder.mkdir(parents=True)
    first = {key: values[:1] for key, values in columns.items()}
    for number, table in enumerate((columns, first)):
        pq.write_table(pa.table(table), folder / f"train-{number:05}-of-00250.parquet")
    report = compile_entry("llava_next")
    assert (report.records, report.samples, report.images, report.rejects) == (4, 4, 3, {})


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("sharegpt4v_captions", "sam/images/sa_545504.jpg"),
        ("sharegpt4v_captions", "web-celebrity/images/Aaron Eckhart.jpg"),
        ("sharegpt4v_pretrain", "llava/llava_pretrain/images/00453/004539375.jpg"),
        ("sharegpt4v_mix", "wikiart/images/vincent-van-gogh_the-starry-night-1889.jpg"),
        ("sharegpt4v_mix", "share_textvqa/images/0a2d5c5e5c4d4a1f.jpg"),
    ],
)
def test_sharegpt4v(name: str, image: str, tmp_path: Path, compile_entry: Compile) -> None:
    save(tmp_path / "data", image)
    turns = talk("What do you see happening in this image?\n<image>", "A street at night.")
    record = {"id": Path(image).stem, "image": image, "conversations": turns}
    written(tmp_path / "data", {entries()[name]["annotations"]: [record, record]})
    report = compile_entry(name)
    assert (report.records, report.samples, report.images, report.rejects) == (2, 2, 2, {})


def vqa(questions: str, annotations: str, **answer: Any) -> dict[str, Any]:
    ids = {"question_id": 9000, "image_id": 9}
    return {
        questions: {"data_subtype": "train2014", "questions": [{**ids, "question": "What is it?"}]},
        annotations: {
            "data_subtype": "train2014",
            "annotations": [{**ids, "answers": [{"answer": "bus", "answer_id": 1}] * 2, **answer}],
        },
    }


@pytest.mark.parametrize(
    ("name", "documents", "text"),
    [
        (
            "vqa_v2",
            vqa(
                "v2_OpenEnded_mscoco_train2014_questions.json",
                "v2_mscoco_train2014_annotations.json",
                multiple_choice_answer="coach",
            ),
            f"What is it?\n{PHRASE} ASSISTANT: coach",
        ),
        (
            "okvqa",
            vqa("okvqa/OpenEnded_mscoco_train2014_questions.json", "okvqa/mscoco_train2014_annotations.json"),
            f"What is it?\n{PHRASE} ASSISTANT: bus",
        ),
        (
            "aokvqa",
            {
                "aokvqa/annotations/aokvqa_v1p0_train.json": [
                    {
                        "split": "train",
                        "image_id": 9,
                        "question_id": "22MexNkBPpdZGX6sxbxVBH",
                        "question": "What is it?",
                        "choices": ["bus", "car"],
                        "correct_choice_idx": 0,
                        "direct_answers": ["bus"] * 10,
                        "difficult_direct_answer": False,
                        "rationales": ["It is long."],
                    }
                ]
            },
            f"What is it?\nA. bus\nB. car\n{LETTER} ASSISTANT: A",
        ),
    ],
)
def test_vqa_files(name: str, documents: dict[str, Any], text: str, tmp_path: Path, compile_entry: Compile) -> None:
    save(tmp_path / "data", "coco/train2014/COCO_train2014_000000000009.jpg", "coco/train2017/000000000009.jpg")
    written(tmp_path / "data", documents)
    report = compile_entry(name)
    assert (report.samples, report.rejects) == (1, {})
    assert report.notes == ({"answer_outvoted": 1} if name == "vqa_v2" else {})
    (sample,) = inspect_samples(tmp_path / "build")
    assert text in sample.to_json()["text"]


def test_every_entry_of_the_page_is_compiled_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert len(entries()) == 9
    assert all(f'"{name}"' in text for name in entries())

"""The evidence: its questions cannot be guessed, and its whole script runs on a tiny random model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from tools.evidence.data import Photo, questions, read_photos
from tools.evidence.page import BEGIN, END, write_page
from tools.evidence.parts import encoder_weights
from tools.evidence.probe import accuracies
from tools.evidence.run import evidence
from tools.evidence.settings import Plan, settings
from tools.evidence.summary import pooled

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGES = sorted((ROOT / "examples/data/coco/train2017").glob("*.jpg"))
WORDS = ("a man in a park", "a house", "an old wooden bridge", "two dogs")


def photos(folder: Path) -> Path:
    """The sample photos of examples/ with invented captions, in LLaVA's format."""
    folder.mkdir()
    records = [
        {
            "id": path.stem,
            "image": path.name,
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is this?"},
                {"from": "gpt", "value": WORDS[number % len(WORDS)]},
            ],
        }
        for number, path in enumerate(IMAGES)
    ]
    (folder / "captions.json").write_text(json.dumps(records))
    (folder / "images").symlink_to(IMAGES[0].parent)
    return folder


def tiny(**changes: Any) -> Plan:
    """A plan of seconds: random parts, two steps a stage."""
    values: dict[str, Any] = {
        "encoder": {"kind": "tiny", "config": {"image_size": 56, "patch_size": 14, "width": 32}},
        "decoder": {"preset": "tiny_llama"},
        "tokenizer": ROOT / "examples/tokenizer",
        "image_size": 56,
        "image_tokens": 4,
        "heads": 2,
        "held_out": 0.5,
        "length": 256,
        "projector_steps": 2,
        "lora_steps": 2,
        "seeds": 1,
        "questions": 2,
        "precision": "fp32",
    }
    return Plan(**values | changes)


def invented(number: int) -> Photo:
    random = numpy.random.default_rng(number)
    caption = " ".join(random.choice(["man", "dog", "house", "sticker", "hat", "sky"], size=2))
    return Photo(
        id=str(number),
        image=f"{number}.jpg",
        caption=caption,
        brightness=float(random.uniform(0, 255)),
        colourfulness=float(random.uniform(0, 255)),
        border=float(random.uniform(200, 255)),
    )


def test_every_question_has_both_answers_equally_often() -> None:
    made = questions([invented(number) for number in range(400)])
    answers: dict[str, Counter[str]] = {}
    for question in made:
        answers.setdefault(question.question, Counter())[question.answer] += 1
    assert "Is there a person?" in answers
    assert "Is the background white?" in answers
    for counts in answers.values():
        assert len(counts) == 2
        assert len(set(counts.values())) == 1


def test_a_thing_is_asked_of_a_photo_whose_caption_names_it_with_the_answer_yes() -> None:
    shown = [invented(number) for number in range(400)]
    by_image = {photo.image: photo for photo in shown}
    asked = [each for each in questions(shown) if each.question == "Is there an animal?"]
    assert asked
    for question in asked:
        assert (question.answer == "Yes") == ("dog" in by_image[question.image].caption)


def test_pixels_decide_what_is_bright_and_what_is_white(tmp_path: Path) -> None:
    from PIL import Image

    source = tmp_path / "photos"
    source.mkdir()
    records = []
    for name, colour in (("black", (0, 0, 0)), ("white", (255, 255, 255)), ("red", (255, 0, 0))):
        Image.new("RGB", (40, 30), colour).save(source / f"{name}.png")
        records.append({"id": name, "image": f"{name}.png", "conversations": [{}, {"value": f"{name}  one"}]})
    (source / "a.json").write_text(json.dumps(records))
    black, white, red = read_photos(source)
    assert (black.brightness, white.brightness, white.border) == (0, 255, 255)
    assert (black.colourfulness, white.colourfulness, red.colourfulness) == (0, 0, 255)
    assert black.caption == "black one"


def test_matrices_of_a_graph_are_named_by_the_node_that_multiplies_with_them() -> None:
    class Node:
        op_type, name, input = "MatMul", "/backbone/encoder/layer.0/mlp/fc1/MatMul", ("x", "onnx::MatMul_7")

    class Graph:
        node = (Node(),)

    arrays = {
        "backbone.encoder.layer.0.mlp.fc1.bias": numpy.zeros(2),
        "onnx::MatMul_7": numpy.arange(6).reshape(3, 2),
        "onnx::Reshape_1": numpy.ones((1, 1369, 384)),
        "onnx::Concat_2": numpy.zeros((1, 1, 384)),
        "decoder.upconv.weight": numpy.zeros(4),
    }
    weights = dict(encoder_weights(Graph(), arrays))
    assert sorted(weights) == [
        "embeddings.position_embeddings",
        "encoder.layer.0.mlp.fc1.bias",
        "encoder.layer.0.mlp.fc1.weight",
    ]
    assert weights["encoder.layer.0.mlp.fc1.weight"].tolist() == [[0, 2, 4], [1, 3, 5]]
    positions = weights["embeddings.position_embeddings"]
    assert positions.shape == (1, 1370, 384)
    assert not positions[:, 0].any()
    assert positions[:, 1:].all()


def test_the_classifier_is_right_about_what_features_say_and_guesses_about_what_they_do_not() -> None:
    shown = [invented(number) for number in range(400)]
    random = numpy.random.default_rng(0)
    features = random.normal(size=(400, 8))
    features[:, 0] = numpy.array([photo.brightness for photo in shown]) / 50
    asked = [each for each in questions(shown) if each.question in ("Bright or dark?", "Colourful or gray?")]
    shares = accuracies(shown, asked, features - features.mean(axis=0))
    assert shares["Bright or dark?"] > 0.85
    assert 0.35 < shares["Colourful or gray?"] < 0.65


def test_settings_are_the_same_for_each_seed_and_differ_in_one_part() -> None:
    names = [setting.name for setting in settings(tiny(seeds=3))]
    assert len(names) == len(set(names)) == 12
    assert {name.rpartition("-")[0] for name in names[:4]} == {name.rpartition("-")[0] for name in names[8:]}


def test_a_mean_over_seeds_has_the_mean_of_their_margins() -> None:
    def run(difference: float, margin: float) -> dict[str, Any]:
        wrong = {"difference": difference, "margin": margin}
        return {"blind": [{"dataset": "captions", "measure": "loss", "exchanged": wrong}]}

    assert pooled([run(0.1, 0.02), run(0.3, 0.04)], "captions", "loss", "exchanged") == pytest.approx((0.2, 0.03))


@pytest.mark.slow
def test_the_script_trains_measures_and_writes_the_page_and_repeats_nothing(tmp_path: Path) -> None:
    source, out, docs = photos(tmp_path / "photos"), tmp_path / "out", tmp_path / "docs"
    evidence(tiny(), source, out, only="mmca-pixel_shuffle")
    results = json.loads((out / "results.json").read_text())
    (run,) = results["runs"]
    assert run["name"] == "mmca-pixel_shuffle-0"
    assert {(row["dataset"], row["measure"]) for row in run["blind"]} >= {("captions", "loss"), ("captions", "cider")}
    assert [step for step, _ in run["stages"]["projector"]["held_out"]] == [2]
    assert run["stages"]["projector"]["tokens"] > 0
    assert not any(caption in (out / "results.json").read_text() for caption in WORDS)
    times = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.out")}
    assert len(times) == 4
    evidence(tiny(), source, out, only="mmca-pixel_shuffle")
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.out")} == times
    with pytest.raises(SystemExit, match="has another plan"):
        evidence(tiny(lora_steps=3), source, out, only="mmca-pixel_shuffle")
    (docs / "figures").mkdir(parents=True)
    (docs / "evidence.md").write_text(f"# Evidence\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    write_page(results, docs)
    page = (docs / "evidence.md").read_text()
    assert "old" not in page
    assert page.startswith("# Evidence")
    assert page.endswith("After.\n")
    assert "| mmca, pixel_shuffle |" in page
    for figure in ("evidence-curves.svg", "evidence-blind.svg"):
        assert (docs / "figures" / figure).read_text().startswith("<?xml")

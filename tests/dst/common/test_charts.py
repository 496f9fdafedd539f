"""Charts as inline SVG: equal bytes, names as plain text, colours of the page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

pytest.importorskip("matplotlib")

from dst.common.charts import MAX_SERIES, Line, bars, histogram, lines

NAMES = ["coco $x^2$ & <b>bold</b>", "_hidden", "שלום 中文 🦊", "escape \x1b[31m", "long " * 40]


def text_of(svg: str) -> str:
    return " ".join(
        "".join(element.itertext()) for element in ET.fromstring(svg).iter() if element.tag.endswith("text")
    )


def test_names_from_data_are_plain_text_in_a_chart() -> None:
    svg = bars("Shares of <datasets>", NAMES, {"asked for": [1, 2, 3, 4, 5], "$real$": [2, 2, 2, 2, 2]}, unit="samples")
    shown = text_of(svg)
    assert all(
        name in shown for name in ("coco $x^2$ & <b>bold</b>", "_hidden", "שלום 中文 🦊", "escape \\x1b[31m", "$real$")
    )
    assert "long long" in shown
    assert "long " * 20 not in shown
    assert ET.fromstring(svg).get("aria-label") == "Shares of <datasets>"
    assert "<script" not in svg
    assert "<style" not in svg  # it would hold for the whole page


def test_the_same_numbers_give_the_same_bytes_and_charts_of_a_page_share_no_id() -> None:
    charts = [histogram("Lengths", [1, 2, 4, 8], {"train": [1, 2, 3]}, unit="tokens", log=True) for _ in range(2)]
    assert charts[0] == charts[1]
    other = histogram("Images", [1, 2, 4, 8], {"train": [1, 2, 3]}, unit="images")
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (charts[0], other)]
    assert not ids[0] & ids[1]
    references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', other)
    assert references
    assert {first or second for first, second in references} <= ids[1]


def test_colours_are_those_of_the_page() -> None:
    series = [Line(name=f"run {number}", x=[0, 1], y=[number, number + 1]) for number in range(MAX_SERIES)]
    svg = lines("Loss", series, x_unit="step", y_unit="loss")
    assert {f"var(--series-{number})" for number in range(1, MAX_SERIES + 1)} <= set(
        re.findall(r"var\(--series-\d\)", svg)
    )
    assert "currentColor" in svg
    assert not re.findall(r"#[0-9a-f]{6}\b", re.sub(r'(id|href)="[^"]*"|url\([^)]*\)', "", svg))


def test_numbers_of_axes_are_written_as_people_write_them() -> None:
    svg = histogram("Lengths", [1, 1024, 1048576], {"train": [10, 2_000_000]}, unit="tokens", log=True)
    assert "2,000,000" in text_of(svg)
    assert "mathdefault" not in svg


def test_a_chart_of_one_point_or_of_no_positive_value_is_drawn() -> None:
    assert "run" in text_of(
        lines(
            "Loss",
            [Line(name="run", x=[3], y=[0.0]), Line(name="b", x=[], y=[])],
            x_unit="step",
            y_unit="loss",
            log=True,
        )
    )

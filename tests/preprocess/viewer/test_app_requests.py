"""What the web app answers, under which names, and what it says to an address that is wrong."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")

from tests.support.viewed_builds import Ask


@pytest.mark.parametrize(
    ("address", "status", "says"),
    [
        ("/nowhere", 404, "there is no page /nowhere"),
        ("/number/999", 404, "no such sample; this build has 24"),
        ("/number/x", 404, "there is no page"),
        ("/number/" + "9" * 5000, 404, "there is no page"),
        ("/?order=upwards", 400, "expected one of build, random"),
        ("/?min_images=-1", 400, "min_images: got &#39;-1&#39;; expected a whole number from 0"),
        ("/?min_images=99999999999999999999", 400, "expected a whole number"),
        ("/?dataset=other", 400, "no dataset other; this build has mine"),
        ("/?text=" + "a" * 1001, 400, "expected at most 1,000"),
        ("/..%2f..%2fetc%2fpasswd", 404, "there is no page"),
        ("/sample/..%2f..%2fmanifest.json", 404, "Not here"),
    ],
)
def test_a_wrong_address_is_a_page_that_says_so(ask: Ask, address: str, status: int, says: str) -> None:
    answer = ask(address)
    assert answer.status == status
    assert says in answer.text


def test_only_its_own_names_and_reading_methods_are_answered(ask: Ask) -> None:
    assert ask("/", host="127.0.0.1:8000").status == 200
    assert ask("/", host="[::1]:8000").status == 200
    assert ask("/", host="evil.example:8000").status == 421
    assert ask("/", method="POST").status == 405
    assert ask("/", method="HEAD").status == 200


def test_every_answer_forbids_scripts_of_data(ask: Ask) -> None:
    for address in ("/", "/nowhere", "/image/0/0", "/viewer.js", "/?order=x"):
        headers = ask(address).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"

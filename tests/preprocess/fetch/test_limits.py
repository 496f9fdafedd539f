"""What a fetch may ask for: public addresses, usable URLs, and each host only as often as allowed."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path

import pytest

from dst.common.public_addresses import is_public, is_refusal, parse_url, public_socket
from preprocess.fetch import ledger
from preprocess.fetch.host_limits import HostLimits
from preprocess.fetch.ledger import Outcome, open_ledger


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "151.101.1.140", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are_asked(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("255.255.255.255", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1"),
        *("fec0::1", "::7f00:1", "::ffff:0:7f00:1", "64:ff9b:1::7f00:1", "64:ff9b::a83f:8110", "168.63.129.16"),
        *("127.1", "2130706433", "0x7f.1", "localhost", ""),
    ],
)
def test_addresses_of_this_machine_and_of_private_networks_are_refused(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(PermissionError) as refused:
        public_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 80)))
    outer = OSError("cannot connect")
    outer.__cause__ = refused.value
    assert is_refusal(outer)
    assert not is_refusal(PermissionError(errno.EACCES, "a firewall's"))


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://Example.ORG/a b.jpg", "example.org"),
        ("HTTPS://example.org:8443/ä?b=c#d", "example.org"),
        ("http://[2606:4700::1111]/a", "2606:4700::1111"),
    ],
)
def test_a_url_has_a_host(url: str, host: str) -> None:
    assert parse_url(url).host == host


@pytest.mark.parametrize(
    "url",
    [
        *("https://", "https:///a.jpg", "ftp://example.org/a", "a.jpg", "", "http://u:p@e.org/", "http://u@e.org/"),
        *("http://e.org:99999/a", "http://e.org:x/a", "http://[::1/a", "http://exa\nmple.org/", "http://a/\0"),
    ],
)
def test_what_cannot_be_requested_is_no_target(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_url(url)


def test_requests_to_a_host_keep_their_distance_and_those_to_others_do_not_wait() -> None:
    async def starts() -> tuple[list[float], list[float]]:
        """Seconds from the beginning."""
        began = asyncio.get_running_loop().time()
        limits = HostLimits(per_host=2, rate=100)
        times: dict[str, list[float]] = {"a": [], "b": []}

        async def ask(host: str) -> None:
            async with limits.turn(host):
                times[host].append(asyncio.get_running_loop().time() - began)

        limits.pause("a", 0.05)
        await asyncio.gather(*(ask("a") for _ in range(4)), ask("b"))
        return times["a"], times["b"]

    of_a, of_b = asyncio.run(starts())
    assert of_b[0] < of_a[0]
    assert all(start > 0.049 + 0.01 * number for number, start in enumerate(of_a))


def test_the_ledger_pages_through_its_urls_while_outcomes_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_ROWS_AT_ONCE", 2)
    urls = [f"https://{host}.org/{number}" for host in "abb" for number in range(5)]
    with open_ledger(tmp_path) as rows:
        rows.add([*urls, *urls])
        assert rows.hosts() == ["a.org", "b.org"]
        asked = []
        for host in rows.hosts():
            for item in rows.waiting(host):
                asked.append(item.url)
                rows.record(item.key, Outcome(state="gone" if item.url.endswith("0") else "fetched", size=10))
        assert sorted(asked) == sorted({*urls})
        assert rows.counts() == {"fetched": 8, "gone": 2}
        assert rows.stored_bytes() == 80
        assert len(list(rows.stored())) == 8
        assert [url for url, _, _ in rows.missing()] == ["https://a.org/0", "https://b.org/0"]


def test_a_folder_of_several_blends_counts_the_urls_of_the_one_that_asks(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as rows:
        rows.add(["https://a.org/1", "https://a.org/2"])
    with open_ledger(tmp_path) as rows:
        rows.add(["https://a.org/2", "https://a.org/3"])
        assert rows.counts() == {"waiting": 2}
        assert [item.url[-1] for item in rows.waiting("a.org")] in (["2", "3"], ["3", "2"])

"""Storage whose server has a certificate of an authority of one's own."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import shards
import shards.storage.retries
from shards import ShardError
from shards.errors import LocationError
from shards.files import file_sha256
from shards.storage.signed_requests import SignedRequests

pytestmark = pytest.mark.usefixtures("cache_home")


class _Handler(BaseHTTPRequestHandler):
    """Answers every request for a range with ten bytes, takes files, and lists none.

    It closes each connection after an answer that does not say so, as servers do after a while without requests.
    """

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.close_connection = True

    def do_GET(self) -> None:
        content = b"0123456789" if "Range" in self.headers else b"<ListBucketResult></ListBucketResult>"
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """No line for each request."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and a certificate that it signed itself, for 127.0.0.1."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now, host = datetime.datetime.now(datetime.UTC), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([host]), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(key.private_bytes(pem, kind, serialization.NoEncryption()) + signed.public_bytes(pem))
    return path


@pytest.fixture
def server(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server with that certificate, at which s3fs looks for buckets."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as listening:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        listening.socket = tls.wrap_socket(listening.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        url = f"https://127.0.0.1:{listening.server_port}"
        for name, value in (
            ("AWS_ENDPOINT_URL", url),
            ("AWS_ACCESS_KEY_ID", "nobody"),
            ("AWS_SECRET_ACCESS_KEY", "nothing"),
            ("AWS_MAX_ATTEMPTS", "1"),
            ("NO_PROXY", "127.0.0.1"),
        ):
            monkeypatch.setenv(name, value)
        yield url
        listening.shutdown()


def test_signed_requests_trust_the_authority_that_is_named(
    server: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = SimpleNamespace(sign=lambda path, expiration: f"{server}/{path}?signature", req_kw={})
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    assert SignedRequests(files, "root").ranges([("a", 0, 10)]) is None
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    assert SignedRequests(files, "root").ranges([("a", 0, 10)]) == [b"0123456789"]


def test_a_file_is_sent_again_where_the_server_closed_the_connection(
    server: str, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    requests = SignedRequests(SimpleNamespace(sign=lambda path, **_: f"{server}/{path}?signature", req_kw={}), "root")
    file = tmp_path / "a.tar"
    file.write_bytes(bytes(5 << 20))
    for _ in range(4):
        assert requests.put("a.tar", file, file_sha256(file))
        assert requests.ranges([("a", 0, 10)]) == [b"0123456789"]


def test_a_certificate_that_is_not_trusted_is_reported_at_once(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    monkeypatch.setattr(shards.storage.retries, "sleep", None)  # there is no second try
    with pytest.raises(ShardError, match=r"s3://bucket/a/\S+: the server's certificate is not trusted .*AWS_CA_BUNDLE"):
        shards.open("s3://bucket/a")


def test_a_file_of_authorities_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "absent.pem"))
    with pytest.raises(LocationError, match=r"s3://bucket/a: AWS_CA_BUNDLE is \S+absent.pem, which is not there"):
        shards.open("s3://bucket/a")

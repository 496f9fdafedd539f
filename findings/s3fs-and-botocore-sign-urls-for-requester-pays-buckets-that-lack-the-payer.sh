#!/usr/bin/env bash
# s3fs 2026.9 and botocore: a signed URL of a file in a bucket whose requester pays does not work by itself.
#
# One expects: a presigned URL says all that its request needs, so that curl or a browser may ask it as it is; and a
# file system that was made with requester_pays=True signs URLs that its bucket accepts. Seen: s3fs signs the URL without
# the payer, and S3 refuses requests to such a bucket that do not name one. With RequestPayer among the parameters (of
# generate_presigned_url, or passed through s3fs's sign), botocore signs the header x-amz-request-payer and leaves it out
# of the URL. Whoever asks must know to send that header; without it the signature is that of another request. So it is
# with all parameters that are headers, such as ChecksumSHA256 and ContentType of put_object. The names are in the URL,
# in X-Amz-SignedHeaders; their values are nowhere.
#
# Seen with s3fs 2026.9.0, botocore 1.43.117, Python 3.11, Linux.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install -qq --disable-pip-version-check s3fs==2026.9.0 aiobotocore==3.10.0 botocore==1.43.117

cat > "$folder/signed.py" <<'PYTHON'
import os
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

import s3fs

os.environ["NO_PROXY"] = "127.0.0.1"


class Bucket(BaseHTTPRequestHandler):
    """Refuses, as S3 does, a request that lacks a header of its signature, or one to this bucket without a payer."""

    def do_GET(self):
        query = parse_qs(urlsplit(self.path).query)
        signed = query["X-Amz-SignedHeaders"][0].split(";")
        pays = "x-amz-request-payer" in self.headers or "x-amz-request-payer" in query
        self.send_response(200 if pays and all(name in self.headers for name in signed) else 403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


server = HTTPServer(("127.0.0.1", 0), Bucket)
threading.Thread(target=server.serve_forever, daemon=True).start()
files = s3fs.S3FileSystem(
    key="a",
    secret="b",
    endpoint_url=f"http://127.0.0.1:{server.server_port}",
    config_kwargs={"signature_version": "s3v4"},
    requester_pays=True,
)


def status(url, **headers):
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers)).status
    except urllib.error.HTTPError as error:
        return error.code


alone = files.sign("bucket/file")
payer = files.sign("bucket/file", RequestPayer="requester")
header = {"x-amz-request-payer": "requester"}
print(f"sign {status(alone)}; with RequestPayer {status(payer)}; with it and its header {status(payer, **header)}")
PYTHON
found=$("$python" "$folder/signed.py" 2> "$folder/log") || { cat "$folder/log"; exit 1; }
echo "s3fs 2026.9.0, a bucket whose requester pays answers signed URLs: $found"
expected='sign 403; with RequestPayer 403; with it and its header 200'
[ "$found" = "$expected" ] || { echo "changed: expected '$expected'"; exit 1; }

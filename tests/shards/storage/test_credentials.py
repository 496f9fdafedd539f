"""Credentials and endpoints of S3, in each place that docs/remote.md names: fsspec finds them, for signed URLs too."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import fsspec
import pytest
import s3fs

import shards
from shards import ShardError
from shards.storage.remote import RemoteStore
from tests.support.remote_builds import all_samples, publish

pytestmark = pytest.mark.usefixtures("cache_home")


@pytest.fixture
def url(folder: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A build on S3. What the variables of the test's server say of credentials is gone."""
    published = f"{bucket}/{folder.parent.name}"
    publish(folder, published)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setitem(fsspec.config.conf, "s3", {})
    return published


def signed_by(url: str) -> tuple[str, str]:
    """The key and the token of a signed URL of the store."""
    files, root = RemoteStore(url)._connected()
    fields = parse_qs(urlsplit(files.sign(f"{root}/manifest.json")).query)
    return fields["X-Amz-Credential"][0].partition("/")[0], fields.get("X-Amz-Security-Token", [""])[0]


def test_a_profile_with_a_token_is_used(
    url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["[team]", "aws_access_key_id = ours", "aws_secret_access_key = secret", "aws_session_token = of today"]
    (tmp_path / "credentials").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert signed_by(url) == ("ours", "of today")
    assert all_samples(shards.open(url)) == all_samples(shards.open(folder))


def test_the_variables_of_fsspec_are_used(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"KEY": "ours", "SECRET": "secret", "ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    fsspec.config.set_conf_env(fsspec.config.conf, {f"FSSPEC_S3_{name}": value for name, value in variables.items()})
    assert signed_by(url) == ("ours", "")
    assert all_samples(shards.open(url)) == all_samples(shards.open(folder))


def test_a_public_bucket_is_read_without_credentials(url: str, folder: Path) -> None:
    fsspec.config.set_conf_env(fsspec.config.conf, {"FSSPEC_S3_ANON": "true"})
    with pytest.raises(ShardError, match=r"access refused \(PermissionError: Forbidden\)"):
        shards.open(url)
    owner = s3fs.S3FileSystem(anon=False, key="nobody", secret="nothing", skip_instance_cache=True)
    for path in owner.find(url):
        owner.chmod(path, acl="public-read")
    assert all_samples(shards.open(url)) == all_samples(shards.open(folder))

"""Addresses below prefixes, and fetches that are bound to them."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest
from pydantic import ValidationError

from asap.errors import FetchFailed
from asap.storage.fetch import FetchSettings, fetch
from asap.storage.prefixes import is_below, prefix_problem

PREFIXES = ("s3://a/in/", "s3://whole/")


@pytest.mark.parametrize("uri", ["s3://a/in/x.jpg", "S3://a/in/b/x.jpg", "s3://a/in", "s3://a/in/", "s3://whole/x y"])
def test_addresses_in_and_below_a_prefix_are_below_it(uri: str) -> None:
    assert is_below(uri, PREFIXES)


@pytest.mark.parametrize(
    "uri",
    ["s3://a/inn/x", "s3://a/x", "s3://a", "s3://a/in/../x", "s3://a/in/./x", "s3://a/in//x", "s3://a/in/x\\..\\y",
     "s3://a/in/x\ny", "/a/in/x", "file:///a/in/x", "https://a/in/x", "a/in/x", "s3://", "", "s3://whole2/x"],
)  # fmt: skip
def test_other_addresses_are_not(uri: str) -> None:
    assert not is_below(uri, PREFIXES)
    assert not is_below("s3://a/in/x", ())


@pytest.mark.parametrize("prefix", ["s3://a", "s3:///", "/in/", "s3://a/in", "s3://a/../b/", "s3://a//", "https://a/"])
def test_prefixes_that_cannot_work_are_refused(prefix: str) -> None:
    assert prefix_problem(prefix)
    with pytest.raises(ValidationError, match="only_below"):
        FetchSettings(only_below=(prefix,))


def test_a_fetch_reads_only_below_its_prefixes(bucket: str, tmp_path: Path) -> None:
    for key in ("in/a", "out/a"):
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=b"bytes")
    (tmp_path / "a").write_bytes(b"bytes")
    settings = FetchSettings(only_below=(f"s3://{bucket}/in/",))
    assert fetch(f"s3://{bucket}/in/a", 100, settings).data == b"bytes"
    for uri in (f"s3://{bucket}/out/a", f"s3://{bucket}/in/../out/a", str(tmp_path / "a")):
        with pytest.raises(FetchFailed, match="which is all that this job may read") as caught:
            fetch(uri, 100, settings)
        assert (caught.value.code, caught.value.retryable) == ("access_denied", False)
        assert fetch(uri.replace("in/../", ""), 100, FetchSettings()).data == b"bytes"


def test_no_other_form_of_a_name_leads_out_of_the_prefixes(bucket: str) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key="in/../out/a", Body=b"bytes")
    uri = f"s3://{bucket}/in/%2e%2e/out/a"
    assert fetch(uri, 100, FetchSettings()).data == b"bytes"
    with pytest.raises(FetchFailed) as caught:
        fetch(uri, 100, FetchSettings(only_below=(f"s3://{bucket}/in/",)))
    assert caught.value.code == "not_found"

"""Names of files, and the other ways in which one name is written."""

import unicodedata
from pathlib import Path

import boto3
import pytest

from asap.errors import FetchFailed, StorageError
from asap.storage.fetch import FetchSettings, fetch
from asap.storage.location import Location
from asap.storage.names import other_forms
from tests.support.faulty_store import FaultyStore

SETTINGS = FetchSettings(attempts=2)
COMPOSED, DECOMPOSED = (unicodedata.normalize(kind, "café.jpg") for kind in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("file:///a%20b", "/a b"),
        ("file:/a/b/", "/a/b"),
        ("File://localhost/a", "/a"),
        ("/a%20b", "/a%20b"),
        ("S3://News/a", "s3://News/a"),
        ("s3a://news/a//b", "s3://news/a//b"),
    ],
)
def test_a_location_is_parsed_as_it_is_written(text: str, uri: str) -> None:
    assert Location.parse(text).uri == uri


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("C:\\news\\a.csv", "a path of Windows"),
        ("file://server/a.csv", "names the machine 'server'"),
        ("gs://news/a.csv", r"AWS_ENDPOINT_URL=https://storage\.googleapis\.com"),
        ("az://news/a.csv", "Azure Blob Storage does not speak S3"),
        ("hf://datasets/a", "hf download"),
        ("https://host/a.csv", "Download the files first"),
    ],
)
def test_an_input_that_is_not_read_says_what_to_do(text: str, reason: str) -> None:
    with pytest.raises(StorageError, match=reason):
        Location.parse(text)


@pytest.mark.parametrize(
    "uri", ["/a/b.jpg", "s3://news/a/b-1_2.jpg", "s3://news", "/a/x%2fy.jpg", "/a/%ff.jpg", "s3://n/a?versionId=1"]
)
def test_most_names_have_no_other_form(uri: str) -> None:
    assert other_forms(uri) == []


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("a%20b.jpg", "a b.jpg"),
        ("a b.jpg", "a%20b.jpg"),
        ("my+file.jpg", "my file.jpg"),
        ("my file.jpg", "my+file.jpg"),
        ("a+b%21.jpg", "a b!.jpg"),
        (COMPOSED, DECOMPOSED),
        (DECOMPOSED, COMPOSED),
        ("caf%C3%A9.jpg", DECOMPOSED),
        (COMPOSED, "caf%C3%A9.jpg"),
        ("images\\a.jpg", "images/a.jpg"),
    ],
)
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_picture_is_found_under_another_form_of_its_name_and_that_is_said(
    written: str, stored: str, kind: str, tmp_path: Path, bucket: str
) -> None:
    folder = f"s3://{bucket}/x" if kind == "s3" else str(tmp_path)
    if kind == "s3":
        boto3.client("s3").put_object(Bucket=bucket, Key=f"x/{stored}", Body=b"data")
    else:
        (tmp_path / stored).parent.mkdir(exist_ok=True)
        (tmp_path / stored).write_bytes(b"data")
    fetched = fetch(f"{folder}/{written}", 10, SETTINGS)
    assert fetched.data == b"data"
    (warning,) = fetched.warnings
    assert ascii(f"{stored}"[-20:])[1:] in warning
    assert "there is no" in warning
    assert fetch(f"{folder}/{stored}", 10, SETTINGS).warnings == ()


@pytest.mark.parametrize(
    ("written", "stored"), [("a//b.jpg", "a/b.jpg"), ("./b.jpg", "b.jpg"), ("x/../b.jpg", "b.jpg")]
)
def test_a_key_with_dots_is_read_as_it_is_and_else_as_folders_are(written: str, stored: str, bucket: str) -> None:
    client = boto3.client("s3")
    client.put_object(Bucket=bucket, Key=stored, Body=b"tidy")
    fetched = fetch(f"s3://{bucket}/{written}", 10, SETTINGS)
    assert fetched.data == b"tidy"
    assert fetched.warnings
    client.put_object(Bucket=bucket, Key=written, Body=b"exact")
    fetched = fetch(f"s3://{bucket}/{written}", 10, SETTINGS)
    assert (fetched.data, fetched.warnings) == (b"exact", ())


def test_of_two_forms_that_exist_none_is_read(tmp_path: Path) -> None:
    (tmp_path / COMPOSED).write_bytes(b"one")
    (tmp_path / DECOMPOSED).write_bytes(b"two")
    with pytest.raises(FetchFailed, match=r"There are 'caf.*' and 'caf.*'; give one of these names") as caught:
        fetch(f"{tmp_path}/caf%C3%A9.jpg", 10, SETTINGS)
    assert (caught.value.code, caught.value.retryable) == ("not_found", False)


def test_other_forms_cost_no_request_unless_a_name_is_not_found(faulty: FaultyStore, bucket: str) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key="a b.jpg", Body=b"data")
    faulty.requests.clear()
    fetch(f"s3://{bucket}/a b.jpg", 10, SETTINGS)
    with pytest.raises(FetchFailed):
        fetch(f"s3://{bucket}/none.jpg", 10, SETTINGS)
    assert [request.method for request in faulty.requests] == ["GET", "GET"]


def test_another_form_never_leaves_the_bucket_or_its_folder(tmp_path: Path, bucket: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    for written in ("..%2fsecret", "%2e%2e%2fsecret", "..%5Csecret"):
        with pytest.raises(FetchFailed):
            fetch(f"{tmp_path}/in/{written}", 10, SETTINGS)
    assert all(form.startswith("s3://photos/") for form in other_forms("s3://photos/..%20/a+b/../../../x//y"))

import pytest

from asap.storage.location import Location
from jobs.scan.input.addresses import image_uri
from jobs.scan.input.manifest import RowError

LOCAL = Location("/data/news")
BUCKET = Location("s3://photos/news")


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("file:///x/a%20b.jpg", "/x/a b.jpg"),
        ("FILE:///x/a.jpg", "/x/a.jpg"),
        ("file:/x/a%2520b.jpg", "/x/a%20b.jpg"),
        ("file://localhost/x/%C3%A9.jpg", "/x/é.jpg"),
        ("file:///x/my+file.jpg", "/x/my+file.jpg"),
        ("file:///x/100%.jpg", "/x/100%.jpg"),
        ("/x/a%20b.jpg", "/x/a%20b.jpg"),
        ("a%20b.jpg", "/data/news/a%20b.jpg"),
        ("~/a.jpg", "/data/news/~/a.jpg"),
        ("$HOME/a.jpg", "/data/news/$HOME/a.jpg"),
        ("images\\a.jpg", "/data/news/images\\a.jpg"),
        ("a.jpg?versionId=3", "/data/news/a.jpg?versionId=3"),
        ("c:a.jpg", "/data/news/c:a.jpg"),
        ("S3://photos/a b+c%20d.jpg", "s3://photos/a b+c%20d.jpg"),
        ("s3a://photos/a//b.jpg", "s3://photos/a//b.jpg"),
        ("s3n://photos/a/../b.jpg", "s3://photos/a/../b.jpg"),
        ("s3://photos/a.jpg?versionId=3", "s3://photos/a.jpg?versionId=3"),
    ],
)
def test_a_local_manifest_names_files_and_objects(written: str, path: str) -> None:
    assert image_uri(written, LOCAL) == path


@pytest.mark.parametrize(
    "name", ["a//b.jpg", "./a.jpg", "../a.jpg", "x/./../a.jpg", "a%20b.jpg", "a b+c?#.jpg", "é.jpg"]
)
def test_a_relative_key_is_read_as_it_is_written(name: str) -> None:
    assert image_uri(name, BUCKET) == f"s3://photos/news/{name}"


def test_a_manifest_below_an_empty_part_of_a_key_has_its_pictures_there() -> None:
    assert image_uri("a.jpg", Location("s3://photos/news//m.csv").parent) == "s3://photos/news//a.jpg"
    assert image_uri("a.jpg", Location("s3://photos//m.csv").parent) == "s3://photos//a.jpg"
    assert image_uri("a.jpg", Location("s3://photos/m.csv").parent) == "s3://photos/a.jpg"


@pytest.mark.parametrize("written", ["/etc/passwd", "file:///etc/passwd", "File:/etc/passwd", "file://localhost/etc/x"])
def test_a_manifest_in_s3_names_no_local_file(written: str) -> None:
    with pytest.raises(RowError, match="is a local file, and the manifest lies in S3"):
        image_uri(written, BUCKET)


@pytest.mark.parametrize("written", ["../../a.jpg", "x/../../../a.jpg", ".//../..//../a.jpg"])
def test_a_relative_key_does_not_leave_the_bucket(written: str) -> None:
    with pytest.raises(RowError, match="leaves the bucket photos"):
        image_uri(written, BUCKET)


@pytest.mark.parametrize("base", [LOCAL, BUCKET])
@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("C:\\Users\\me\\a.jpg", r"a path of Windows\. Write the path that the workers have.*images/a\.jpg"),
        ("d:/photos/a.jpg", "a path of Windows"),
        ("\\\\server\\share\\a.jpg", "a path of Windows"),
        ("file://server/share/a.jpg", r"names the machine 'server'\. Write file:///PATH"),
        ("file://~/a.jpg", r"names the machine '~'\. Write file:///PATH"),
        ("file:///a%00.jpg", "not UTF-8, or a NUL"),
        ("file:///%ff.jpg", "not UTF-8, or a NUL"),
        ("gs://photos/a.jpg", r"an address of gs:\. Local.* are read\. .*AWS_ENDPOINT_URL=https://storage\.googleapis"),
        ("abfss://photos@account/a.jpg", "Azure Blob Storage does not speak S3"),
        ("hf://datasets/x/a.jpg", "`hf download`"),
        ("HTTPS://host/a.jpg", "Download the files first"),
        ("http://host/a.jpg", "Download the files first"),
        ("ftp://host/a.jpg", "Copy the files to a folder or to S3 first"),
        ("s3://photos", r"names no object\. Write s3://BUCKET/KEY"),
        ("s3:///a.jpg", "names no bucket"),
    ],
)
def test_an_address_that_is_not_read_says_what_to_do(written: str, reason: str, base: Location) -> None:
    with pytest.raises(RowError, match=reason):
        image_uri(written, base)

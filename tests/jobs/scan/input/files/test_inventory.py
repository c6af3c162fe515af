import csv
import gzip
import io
import json
from pathlib import Path
from urllib.parse import quote_plus

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import InputNotFound
from jobs.scan.input.sources import find_source
from jobs.scan.input.tables.table import TableOptions
from tests.support.input_files import write_files

KEYS = (
    "news/c d.txt",
    "news/a+b.jpg",
    "news/c d.jpg",
    "news/a+b.txt",
    "news/é.png",
    "news/",
    "news/é.json",
    "films/a.mp4",
)
CONTENT = {"news/a+b.txt": b"text a", "news/c d.txt": b"text c", "news/\u00e9.json": b'{"caption": "text e"}'}


def _csv(bucket: str, keys: tuple[str, ...], *more: str) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows(
        [bucket, quote_plus(key, safe="/"), 5, "etag", *more] for key in keys
    )
    return gzip.compress(buffer.getvalue().encode())


def _manifest(bucket: str, form: str, schema: str, *names: str) -> bytes:
    files = [{"key": f"lists/{bucket}/all/data/{name}", "size": 100, "MD5checksum": "0"} for name in names]
    head = {"sourceBucket": bucket, "destinationBucket": f"arn:aws:s3:::{bucket}", "version": "2016-11-30"}
    return json.dumps(head | {"fileFormat": form, "fileSchema": schema, "files": files}).encode()


@pytest.mark.parametrize("form", ["CSV", "Parquet"])
def test_the_pictures_of_an_inventory_are_paired_with_the_texts_that_it_lists(bucket: str, form: str) -> None:
    write_files(f"s3://{bucket}", CONTENT)
    folder = f"s3://{bucket}/lists/{bucket}/all"
    if form == "CSV":
        data = {"data/1.csv.gz": _csv(bucket, KEYS[:3]), "data/2.csv.gz": _csv(bucket, KEYS[3:])}
    else:
        data = {}
        for number, keys in enumerate((KEYS[:3], KEYS[3:])):
            columns = {
                "bucket": [bucket] * len(keys),
                "key": keys,
                "size": [5] * len(keys),
                "e_tag": ["etag"] * len(keys),
            }
            buffer = io.BytesIO()
            pq.write_table(pa.table(columns), buffer)
            data[f"data/{number}.parquet"] = buffer.getvalue()
    names = [name.rpartition("/")[2] for name in data]
    manifest = _manifest(bucket, form, "Bucket, Key, Size, ETag", *names)
    write_files(
        folder, data | {"2026-01-01T00-00Z/manifest.json": manifest, "2026-01-01T00-00Z/manifest.checksum": b"0"}
    )
    for address in (f"{folder}/2026-01-01T00-00Z/manifest.json", f"{folder}/2026-01-01T00-00Z"):
        source = find_source(address)
        assert source.kind == "inventory"
        rows = list(source.rows())
        assert [(row.row_id, row.custom_id, row.text) for row in rows] == [
            (0, "news/a+b.jpg", "text a"),
            (1, "news/c d.jpg", "text c"),
            (2, "news/é.png", "text e"),
        ]
        assert rows[0].image_uri == f"s3://{bucket}/news/a+b.jpg"
        assert source.describe()["files"] == {"count": 2, "bytes": 200}
        before = source.fingerprint()
    write_files(folder, {next(iter(data)): next(iter(data.values())) + b"\n"})
    assert source.fingerprint() != before


def test_a_copied_inventory_finds_its_data_beside_it(tmp_path: Path) -> None:
    write_files(tmp_path, {"manifest.json": _manifest("b", "CSV", "Bucket, Key, Size", "1.csv.gz")})
    with pytest.raises(InputNotFound, match=r"data files are not there.* Copy them to .*/data"):
        find_source(str(tmp_path / "manifest.json"), options=TableOptions(texts=False))
    write_files(tmp_path, {"data/1.csv.gz": _csv("b", KEYS)})
    rows = find_source(str(tmp_path / "manifest.json"), options=TableOptions(texts=False)).rows()
    assert next(rows).image_uri == "s3://b/news/a+b.jpg"


def test_older_versions_and_deleted_objects_are_no_pictures(tmp_path: Path) -> None:
    schema = "Bucket, Key, Size, ETag, IsLatest, IsDeleteMarker"
    lines = [*(_csv("b", (name,), *flags) for name, flags in (
        ("old.jpg", ("false", "false")), ("gone.jpg", ("true", "true")), ("a.jpg", ("true", "false"))))]  # fmt: skip
    write_files(
        tmp_path, {"manifest.json": _manifest("b", "CSV", schema, "1.csv.gz"), "data/1.csv.gz": b"".join(lines)}
    )
    rows = find_source(str(tmp_path / "manifest.json"), options=TableOptions(texts=False)).rows()
    assert [row.custom_id for row in rows] == ["a.jpg"]


@pytest.mark.parametrize(
    ("form", "schema", "keys", "reason"),
    [
        (
            "ORC",
            "struct<bucket:string>",
            KEYS,
            "of the format 'ORC', which is not read. Set its format to CSV or Parquet",
        ),
        ("CSV", "Bucket, Size", KEYS, "without the column Key"),
        (
            "CSV",
            "Bucket, Key, Size",
            ("a.mp4", "b.txt"),
            "lists no picture among its first 2 objects, such as s3://b/a.mp4",
        ),
        ("CSV", "Bucket, Key, Size", ("a.jpg", "b.txt"), "lists no texts of its first 1 pictures"),
        ("CSV", "Bucket, Key, Size", (), "lists no object"),
    ],
)
def test_an_inventory_that_gives_no_pair_is_refused(
    tmp_path: Path, form: str, schema: str, keys: tuple[str, ...], reason: str
) -> None:
    write_files(tmp_path, {"manifest.json": _manifest("b", form, schema, "1.csv.gz"), "data/1.csv.gz": _csv("b", keys)})
    with pytest.raises(InputNotFound, match=reason):
        find_source(str(tmp_path / "manifest.json"))


def test_an_inventory_whose_files_are_no_list_is_refused_and_a_size_that_is_no_number_is_none(tmp_path: Path) -> None:
    manifest = json.loads(_manifest("b", "CSV", "Bucket, Key, Size", "1.csv"))
    write_files(tmp_path, {"manifest.json": json.dumps(manifest | {"files": 5}).encode()})
    with pytest.raises(InputNotFound, match="whose files are no list: 5"):
        find_source(str(tmp_path / "manifest.json"))
    write_files(tmp_path, {"manifest.json": json.dumps(manifest).encode(), "data/1.csv": b'"b","a.jpg","abc"\n'})
    rows = find_source(str(tmp_path / "manifest.json"), options=TableOptions(texts=False)).rows()
    assert [row.custom_id for row in rows] == ["a.jpg"]


def test_an_inventory_is_not_read_where_only_some_prefixes_may_be_read(bucket: str) -> None:
    secret = f"{bucket}-secret"
    boto3.client("s3").create_bucket(Bucket=secret)
    write_files(f"s3://{secret}", {"hr/salaries.csv": b"records,news/a.jpg\nrecords,news/a.txt\n"})
    head = {"destinationBucket": f"arn:aws:s3:::{secret}", "fileFormat": "CSV", "fileSchema": "Bucket, Key"}
    manifest = json.dumps(head | {"files": [{"key": "hr/salaries.csv"}]}).encode()
    write_files(f"s3://{bucket}/in", {"one.json": manifest, "folder/two.json": manifest})
    options = TableOptions(only_below=(f"s3://{bucket}/in/",))
    for address in (f"s3://{bucket}/in/one.json", f"s3://{bucket}/in/folder", f"s3://{bucket}/in/folder/*.json"):
        with pytest.raises(InputNotFound, match="is an S3 Inventory, which is not read for jobs"):
            find_source(address, options=options)

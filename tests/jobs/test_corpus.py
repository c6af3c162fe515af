"""Corpora are read from a bucket, or as the settings of a job say."""

import json
from pathlib import Path
from typing import Any

import boto3
import pytest

from asap.corpus.annotations import DEFAULT_RULES, ReadRules
from asap.corpus.folder import open_folder
from asap.corpus.picture_cache import PictureCache, read_picture
from asap.corpus.reader import read_corpus, read_split
from asap.errors import CorpusError, StorageError
from jobs.corpus import read_corpus as read_corpus_of_job
from jobs.settings import CorpusSettings
from tests.support.pictures import draw_jpeg

PICTURES = ("origin/guardian/0.jpg", "DGM4/manipulation/infoswap/1.jpg", "origin/bbc/2.jpg")
NAMES = ("DGM4/origin/gardian/0.jpg", "DGM4/manipulation/infoswap/1.jpg", "DGM4/origin/bbc/2.jpg")
ROWS: list[dict[str, Any]] = [
    {"id": number, "image": name, "text": f"a man waits {number}", "fake_cls": "face_swap" if number == 1 else "orig",
     "fake_image_box": [4, 4, 30, 90] if number == 1 else [], "fake_text_pos": []}
    for number, name in enumerate(NAMES)
]  # fmt: skip


def upload(bucket: str, key: str, content: Any) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=body)


@pytest.fixture
def corpus(bucket: str) -> str:
    """A copy of DGM4 as users have it: the pictures have other names than in the metadata."""
    for number, file in enumerate(PICTURES):
        upload(bucket, f"data/DGM4/{file}", draw_jpeg(number))
    upload(bucket, "data/DGM4/metadata/train.json", ROWS)
    upload(bucket, "data/DGM4/captions.json", {NAMES[0]: "a coat"})
    upload(bucket, "data/DGM4/thumbnails/origin/bbc/9.jpg", b"")
    return f"s3://{bucket}/data/DGM4"


def test_a_corpus_in_a_bucket_is_read_like_one_on_a_disk(corpus: str) -> None:
    found = read_corpus(corpus, "train")
    assert [record.image for record in found.records] == [f"{corpus}/{file}" for file in PICTURES]
    assert [record.caption for record in found.records] == ["a coat", "a man waits 1", "a man waits 2"]
    assert found.report.files == ["metadata/train.json"]
    assert found.report.relocated_images.count == 1
    assert f"train of {corpus}: 3 of 3 pairs" in str(found.report)


def test_pictures_are_decoded_from_the_bucket(corpus: str, tmp_path: Path) -> None:
    records = read_corpus(corpus, "train").records
    cache = PictureCache.prepare(records, 16, tmp_path, read=read_picture)
    assert cache.sizes.tolist() == [[64, 48]] * 3
    assert len({row.tobytes() for row in cache.pixels}) == 3


def test_missing_pictures_are_left_out_or_refused(corpus: str, bucket: str) -> None:
    boto3.client("s3").delete_object(Bucket=bucket, Key=f"data/DGM4/{PICTURES[2]}")
    assert len(read_corpus(corpus, "train", ReadRules(missing_images=0.5)).records) == 2
    with pytest.raises(CorpusError, match=rf"1 of 3 pairs .* not in {corpus}, 33\.33% .*: DGM4/origin/bbc/2\.jpg"):
        read_corpus(corpus, "train")


@pytest.fixture
def pictureless(tmp_path: Path) -> Path:
    """A corpus of four pairs without pictures."""
    folder = tmp_path / "pictureless"
    (folder / "metadata").mkdir(parents=True)
    rows = [ROWS[0] | {"id": number, "image": f"images/{number}.jpg"} for number in range(4)]
    (folder / "metadata/train.json").write_text(json.dumps(rows))
    return folder


def test_a_refused_corpus_leaves_a_list_of_all_missing_pictures(
    pictureless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(
        CorpusError, match=r"images/2\.jpg\. Check where the pictures are.*txt lists all 4\.$"
    ) as caught:
        read_corpus_of_job(CorpusSettings(), str(pictureless), "train", "dgm4")
    (listed,) = tmp_path.glob("asap-missing-train-*.txt")
    assert str(listed) in str(caught.value)
    assert listed.read_text().splitlines() == [f"images/{number}.jpg" for number in range(4)]
    assert "\n" not in str(caught.value)


def test_a_corpus_is_also_refused_if_no_list_can_be_written(pictureless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/proc")
    with pytest.raises(CorpusError, match=r"Check where the pictures are, or raise missing_images\.$"):
        read_corpus_of_job(CorpusSettings(), str(pictureless), "train", "dgm4")


def test_metadata_and_pictures_may_be_in_different_locations(corpus: str, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "notes/metadata").mkdir(parents=True)
    (tmp_path / "notes/metadata/train.json").write_text(json.dumps(ROWS))
    upload(bucket, "llm_0.jsonl", b'{"id": 2, "explanation": "he stands"}\n')
    found = read_corpus(
        str(tmp_path / "notes"), "train", pictures=corpus, captions=[f"{corpus}/captions.json"],
        explanations=[f"s3://{bucket}/llm_0.jsonl"],
    )  # fmt: skip
    assert found.records[1].image == f"{corpus}/{PICTURES[1]}"
    assert (found.records[0].caption, found.records[2].explanation) == ("a coat", "he stands")

    more = read_corpus(corpus, "train", files=["metadata/train.json", str(tmp_path / "notes/metadata/train.json")])
    assert len(more.records) == 6


def test_pictures_beside_the_prefix_are_found(bucket: str) -> None:
    upload(bucket, "notes/metadata/val.json", ROWS[:1])
    upload(bucket, "DGM4/origin/gardian/0.jpg", b"")
    assert read_corpus(f"s3://{bucket}/notes", "val").records[0].image == f"s3://{bucket}/DGM4/origin/gardian/0.jpg"


def test_a_whole_bucket_may_be_the_corpus(bucket: str) -> None:
    upload(bucket, "metadata/val.json", ROWS[:1])
    upload(bucket, "origin/gardian/0.jpg", b"")
    assert read_corpus(f"s3://{bucket}", "val").records[0].image == f"s3://{bucket}/origin/gardian/0.jpg"


def test_a_path_is_read_without_a_store(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata/train.json").write_text(json.dumps(ROWS[:1]))
    (tmp_path / "origin/gardian").mkdir(parents=True)
    picture = tmp_path / "origin/gardian/0.jpg"
    picture.write_bytes(b"")
    found = read_corpus(str(tmp_path), "train", DEFAULT_RULES)
    assert found.records == read_split(tmp_path, "train")
    assert read_picture(found.records[0].image) == picture


def test_missing_files_and_buckets_are_named(bucket: str, corpus: str) -> None:
    with pytest.raises(CorpusError, match=rf"s3://{bucket}/none/metadata/train\.json does not exist; a corpus has"):
        read_corpus(f"s3://{bucket}/none", "train")
    with pytest.raises(StorageError, match=rf"{corpus}/metadata/none\.json does not exist"):
        read_corpus(corpus, "train", files=["metadata/none.json"])
    with pytest.raises(StorageError, match="the bucket of s3://no-such-bucket-here/x does not exist"):
        read_corpus("s3://no-such-bucket-here/x", "train")
    with pytest.raises(StorageError, match=r"has the unknown scheme https://\..*Download the files first"):
        open_folder("https://example.org/DGM4")

"""The pictures of a corpus are decoded once."""

import dataclasses
import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from asap.corpus.picture_cache import PictureCache
from asap.corpus.reader import read_split
from asap.errors import DecodeFailed, EmptyFile, ImageMissing, StorageError
from asap.preprocessing.images import prepare_image

SIZE = 32


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three records that show two pictures."""
    folder = tmp_path / "corpus"
    (folder / "images").mkdir(parents=True)
    (folder / "metadata").mkdir()
    for name, size in (("a", (80, 60)), ("b", (40, 50))):
        noise = np.random.default_rng(ord(name)).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"images/{name}.png")
    rows = [{"id": 1, "image": f"images/{name}.png", "text": "a man waits", "fake_cls": "orig"} for name in "aba"]
    (folder / "metadata/train.json").write_text(json.dumps(rows))
    return folder


def test_a_picture_is_decoded_once_for_all_records_that_show_it(corpus: Path, tmp_path: Path) -> None:
    cache = PictureCache.prepare(read_split(corpus, "train"), SIZE, tmp_path / "cache")
    assert cache.pixels.shape == (2, SIZE, SIZE, 3)
    assert cache.sizes.tolist() == [[80, 60], [40, 50]]
    for path, row in cache.index.items():
        assert np.array_equal(cache.pixels[row], prepare_image(path, SIZE).pixels)


def test_the_cache_is_a_file_that_workers_share_and_cannot_write(corpus: Path, tmp_path: Path) -> None:
    cache = PictureCache.prepare(read_split(corpus, "train"), SIZE, tmp_path / "cache")
    assert isinstance(cache.pixels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        cache.pixels[0] = 0


def test_an_existing_cache_is_used_again(corpus: Path, tmp_path: Path) -> None:
    records = read_split(corpus, "train")
    first, seen = PictureCache.prepare(records, SIZE, tmp_path / "cache"), list[int]()
    for path in first.index:
        path.unlink()
    again = PictureCache.prepare(records, SIZE, tmp_path / "cache", seen.append)
    assert seen == []
    assert np.array_equal(again.pixels, first.pixels)


def test_progress_gets_the_number_of_decoded_pictures(corpus: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    PictureCache.prepare(read_split(corpus, "train"), SIZE, tmp_path / "cache", seen.append)
    assert seen == [2]


def test_another_size_or_other_pictures_have_their_own_cache(corpus: Path, tmp_path: Path) -> None:
    records = read_split(corpus, "train")
    assert PictureCache.prepare(records, SIZE, tmp_path / "cache").pixels.shape == (2, 32, 32, 3)
    assert PictureCache.prepare(records, 16, tmp_path / "cache").pixels.shape == (2, 16, 16, 3)
    assert PictureCache.prepare(records[1:2], SIZE, tmp_path / "cache").pixels.shape == (1, 32, 32, 3)


def test_a_cache_that_was_interrupted_is_made_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, real = read_split(corpus, "train"), prepare_image

    def killed(path: Path, image_size: int) -> Any:
        if path.name == "b.png":
            raise KeyboardInterrupt
        return real(path, image_size)

    with monkeypatch.context() as patched:
        patched.setattr("asap.corpus.picture_cache.prepare_image", killed)
        with pytest.raises(KeyboardInterrupt):
            PictureCache.prepare(records, SIZE, tmp_path / "cache")
    assert any((tmp_path / "cache").iterdir())

    cache = PictureCache.prepare(records, SIZE, tmp_path / "cache")
    assert np.array_equal(cache.pixels[1], prepare_image(corpus / "images/b.png", SIZE).pixels)


@pytest.mark.parametrize(
    ("content", "error"), [(None, ImageMissing), (b"", EmptyFile), (b"\x89PNG\r\n\x1a\nbroken", DecodeFailed)]
)
def test_a_picture_that_cannot_be_read_is_named(
    corpus: Path, tmp_path: Path, content: bytes | None, error: type[Exception]
) -> None:
    path, records = corpus / "images/b.png", read_split(corpus, "train")
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(error, match=re.escape(str(path))):
        PictureCache.prepare(records, SIZE, tmp_path / "cache")


def test_pictures_that_are_not_local_files_are_read_by_the_callers_function(corpus: Path, tmp_path: Path) -> None:
    records = read_split(corpus, "train")
    elsewhere = [dataclasses.replace(record, image=f"s3://bucket/{Path(record.image).name}") for record in records]
    cache = PictureCache.prepare(
        elsewhere, SIZE, tmp_path / "cache", read=lambda address: (corpus / "images" / Path(address).name).read_bytes()
    )
    assert set(cache.index) == {"s3://bucket/a.png", "s3://bucket/b.png"}
    assert np.array_equal(cache.pixels[1], prepare_image(corpus / "images/b.png", SIZE).pixels)


def test_the_cache_survives_a_kill_between_its_two_files(corpus: Path, tmp_path: Path) -> None:
    records = read_split(corpus, "train")
    cache = PictureCache.prepare(records, SIZE, tmp_path / "cache")
    pixels = np.array(cache.pixels)
    del cache
    sizes = next((tmp_path / "cache").glob("*.sizes.npy"))
    sizes.unlink()
    next((tmp_path / "cache").glob("*.pixels.npy")).write_bytes(os.urandom(100))
    assert np.array_equal(PictureCache.prepare(records, SIZE, tmp_path / "cache").pixels, pixels)


def test_a_picture_that_cannot_be_decoded_may_be_kept_as_broken(corpus: Path, tmp_path: Path) -> None:
    (corpus / "images/b.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    records = read_split(corpus, "train")
    cache = PictureCache.prepare(records, SIZE, tmp_path / "cache", keep_broken=True)
    assert cache.sizes.tolist() == [[80, 60], [0, 0]]
    ((address, problem),) = cache.broken.items()
    assert address == corpus / "images/b.png"
    assert re.match(rf"picture {address}: the PNG image is truncated or corrupt", problem)
    # The cache keeps that the picture is broken when it is opened again.
    assert list(PictureCache.prepare(records, SIZE, tmp_path / "cache").broken) == [address]


def test_a_disk_without_room_for_the_pictures_is_an_error_before_any_is_decoded(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, start: int, size: int) -> None:
        assert (start, size >= 2 * SIZE * SIZE * 3) == (0, True)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"pixels\.npy cannot be written: the disk is full \(.*\)\. Free space"):
        PictureCache.prepare(read_split(corpus, "train"), SIZE, tmp_path / "cache", read=lambda _: pytest.fail("read"))
    assert list((tmp_path / "cache").iterdir()) == []

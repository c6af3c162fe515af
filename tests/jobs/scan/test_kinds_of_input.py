"""Inputs as people have them, one of each kind: each is judged, or refused before work in a sentence.

The parts of a scan have tests of their own with more variants. These go the way of a person: find the input, look at
it, and read the pictures of its pairs.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
import tarfile
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from jobs.errors import InputNotFound
from jobs.scan.input.sources import find_source
from jobs.scan.input.tables.columns import TableOptions
from jobs.scan.look import look_at
from jobs.scan.settings import ScanSettings
from tests.support.pictures import draw_jpeg

TEXTS = ["The mayor opens a bridge", "A farmer feeds two geese"]
PAIRS = list(zip(["1.jpg", "2.jpg"], TEXTS, strict=True))

Build = Callable[[Path], str]
"""Writes an input below a folder that holds 1.jpg and 2.jpg, and returns its address below the folder."""


@dataclass(frozen=True)
class Kind:
    """An input, and what becomes of it."""

    name: str
    build: Build
    pairs: Sequence[tuple[str, str | None]] = tuple(PAIRS)
    """The end of the name of each picture, and its text."""
    failing: dict[str, int] = field(default_factory=dict)
    """Pairs of the sample that fail, by error code."""
    refused: str | None = None
    """Words of the sentence with which nothing starts."""
    warned: str | None = None
    """Words of a warning or a note."""
    options: TableOptions = field(default_factory=TableOptions)


def _records(image: str = "image", text: str = "text", **more: Any) -> list[dict[str, Any]]:
    return [{image: picture, text: words} | more for picture, words in PAIRS]


def _file(name: str, data: Any) -> Build:
    """Return a builder of one file: text, bytes, records or a table, written as its name says."""

    def build(folder: Path) -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, bytes):
            path.write_bytes(data)
        elif isinstance(data, str):
            path.write_bytes(data.encode())
        elif isinstance(data, pa.Table):
            pq.write_table(data, path)
        elif path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(data), path)
        elif path.suffix in {".jsonl", ".manifest", ".ndjson"}:
            path.write_text("".join(json.dumps(record) + "\n" for record in data))
        else:
            path.write_text(json.dumps(data))
        return name

    return build


def _csv(header: str = "image,text", delimiter: str = ",", end: str = "\n", before: str = "", after: str = "") -> str:
    lines = [*([header.replace(",", delimiter)] if header else []), *(delimiter.join(pair) for pair in PAIRS)]
    return before + "".join(line + after + end for line in lines)


def _files(*builds: Build, at: str) -> Build:
    """Return a builder of several files, whose input is `at`."""

    def build(folder: Path) -> str:
        for one in builds:
            one(folder)
        return at

    return build


def _beside(suffix: str, texts: list[bytes]) -> Build:
    """Return a builder of a folder of pictures with a text beside each, named N + `suffix`."""

    def build(folder: Path) -> str:
        (folder / "news").mkdir()
        for number, text in enumerate(texts, start=1):
            shutil.copy(folder / f"{number}.jpg", folder / "news")
            (folder / "news" / f"{number}{suffix}").write_bytes(text)
        return "news"

    return build


def _renamed(*names: str) -> Build:
    """Return a builder of a folder of pictures with other names, each with its text beside it."""

    def build(folder: Path) -> str:
        (folder / "news").mkdir()
        for number, (name, text) in enumerate(zip(names, TEXTS, strict=True), start=1):
            shutil.copy(folder / f"{number}.jpg", folder / "news" / name)
            (folder / "news" / Path(name).with_suffix(".txt")).write_text(text)
        return "news"

    return build


def _tar(name: str = "a.tar") -> Build:
    def build(folder: Path) -> str:
        (folder / name).parent.mkdir(exist_ok=True)
        with tarfile.open(folder / name, "w") as tar:
            for number, text in enumerate(TEXTS, start=1):
                for suffix, data in (("jpg", (folder / f"{number}.jpg").read_bytes()), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        return name

    return build


def _png(**options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)).save(file, "PNG", **options)
    return file.getvalue()


def _large_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * (3 << 20))
    return _png(pnginfo=info)


def _broken_chunk() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a short one")
    return _png(pnginfo=info).replace(b"a short one", b"a shOrt one")


def _as(format: str, size: tuple[int, int] = (128, 96)) -> bytes:
    file = io.BytesIO()
    with Image.open(io.BytesIO(_png())) as picture:
        picture.resize(size).save(file, format)
    return file.getvalue()


def _picture(name: str, data: bytes) -> Build:
    """Return a builder of a table of one picture, with these bytes."""

    def build(folder: Path) -> str:
        (folder / name).write_bytes(data)
        (folder / "a.jsonl").write_text(json.dumps({"image": name, "text": TEXTS[0]}) + "\n")
        return "a.jsonl"

    return build


def _judged(name: str, file: str, data: bytes, warned: str | None = None) -> Kind:
    return Kind(name, _picture(file, data), [(file, TEXTS[0])], warned=warned)


def _no_picture(name: str, file: str, data: bytes, refused: str) -> Kind:
    return Kind(name, _picture(file, data), refused=refused)


JPEG = [draw_jpeg(1), draw_jpeg(2)]
BASE64 = [base64.b64encode(data).decode() for data in JPEG]
NOISE = _as("JPEG", (640, 480))
HUGGING_FACE = [{"image": {"bytes": data, "path": None}, "text": text} for data, text in zip(JPEG, TEXTS, strict=True)]
COCO = {
    "images": [{"id": n, "file_name": picture} for n, (picture, _) in enumerate(PAIRS)],
    "annotations": [{"id": n, "image_id": n, "caption": text} for n, text in enumerate(TEXTS)],
}
LABEL_STUDIO = [{"id": n, "data": {"image": picture, "text": text}} for n, (picture, text) in enumerate(PAIRS)]
CONVERSATIONS = [
    {"image": picture, "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}]}
    for picture, text in PAIRS
]
CHOSEN = TableOptions(image_column="1", text_column="2")
NFD = unicodedata.normalize("NFD", "café.jpg")

TABLES = [
    *(
        Kind(f"{image} and {text} in {name}", _file(name, _records(image, text)))
        for name in ("a.jsonl", "a.parquet", "a.json")
        for image, text in (("url", "TEXT"), ("URL", "caption"), ("file_name", " text"), ("filepath", "title"))
    ),
    Kind("image_path and Caption in CSV", _file("a.csv", _csv("image_path, Caption"))),
    Kind("two columns named text", _file("a.csv", "image,text,text\n1.jpg,a,b\n"), refused="text"),
    Kind("two that could be the text", _file("a.jsonl", _records(text="title", headline="b")), refused="headline"),
    Kind("lines of SageMaker", _file("train.manifest", _records("source-ref", "caption"))),
    Kind("HuggingFace Parquet", _file("a.parquet", HUGGING_FACE), [("a.parquet", text) for text in TEXTS]),
    Kind(
        "a binary column",
        _file("a.parquet", pa.table({"image": pa.array(JPEG, pa.binary()), "caption": TEXTS})),
        [("a.parquet", text) for text in TEXTS],
    ),
    Kind("several captions in a list", _file("a.jsonl", [{"image": "1.jpg", "text": [TEXTS[0], "b"]}]),
         PAIRS[:1], warned="first of"),
    Kind("base64 in JSON lines",
         _file("a.jsonl", [{"image": data, "text": text} for data, text in zip(BASE64, TEXTS, strict=True)]),
         [("a.jsonl", text) for text in TEXTS]),
    Kind("data: URIs in JSON lines",
         _file("a.jsonl", [{"image": f"data:image/jpeg;base64,{BASE64[0]}", "text": TEXTS[0]}]),
         [("a.jsonl", TEXTS[0])]),
    Kind("TSV", _file("a.tsv", _csv(delimiter="\t"))),
    Kind("semicolons", _file("a.csv", _csv(delimiter=";"))),
    Kind("bars", _file("a.csv", _csv(delimiter="|"))),
    Kind("no header", _file("a.csv", _csv("")), refused="--image-column 1"),
    Kind("no header, columns by position", _file("a.csv", _csv("")), options=CHOSEN),
    Kind("CR line ends", _file("a.csv", _csv(end="\r"))),
    Kind("backslashes before quotes", _file("a.csv", 'image,text\n"1.jpg","a \\"b\\", c"\n'), [("1.jpg", 'a "b", c')]),
    Kind("a comma at the end of each line", _file("a.csv", _csv(after=","))),
    Kind("a comment before the header", _file("a.csv", _csv(before="# drawn by hand\n"))),
    Kind("cp1252",
         _file("a.csv", ("image,text\n" + "1.jpg,Straße für die Bürger – „schön“\n" * 20).encode("cp1252")),
         [("1.jpg", "Straße für die Bürger – „schön“")] * 20, warned="cp1252"),
    Kind("UTF-16", _file("a.csv", _csv().encode("utf-16"))),
    Kind("ids that are floats", _file("a.jsonl", _records(id=1.0))),
    Kind("NaN as a text", _file("a.jsonl", '{"image": "1.jpg", "text": NaN}\n{"image": "2.jpg", "text": "b"}\n'),
         [("1.jpg", None), ("2.jpg", "b")], failing={"text_missing": 1}),
    Kind("NaN among other fields", _file("a.jsonl", '{"image": "1.jpg", "text": "b", "score": NaN}\n'),
         [("1.jpg", "b")]),
    Kind("words for nothing", _file("a.csv", "image,text\n1.jpg,nan\n2.jpg,b\n"), [("1.jpg", None), ("2.jpg", "b")],
         failing={"text_missing": 1}, warned="nan"),
    Kind("COCO captions", _file("captions.json", COCO)),
    Kind("records under data", _file("a.json", {"data": _records()})),
    Kind("an object of records", _file("a.json", {f"r{n}": record for n, record in enumerate(_records())})),
    Kind("an object of columns", _file("a.json", {"image": [p for p, _ in PAIRS], "text": TEXTS})),
    Kind("one object, printed over lines", _file("a.json", json.dumps(_records()[0], indent=2)), PAIRS[:1]),
    Kind("Label Studio", _file("a.json", LABEL_STUDIO)),
    Kind("lists of a conversation", _file("a.json", CONVERSATIONS)),
    Kind("VisualNews", _file("data.json", _records("image_path", "caption"))),
    Kind("a folder of Parquet parts",
         _files(_file("p/part-0.parquet", _records("image_uri")[:1]),
                _file("p/part-1.parquet", _records("image_uri", extra=1)[1:]),
                _file("p/_SUCCESS", ""), _file("p/.part-0.parquet.crc", b"crc"), at="p")),
    Kind("a quoted pattern",
         _files(_file("p/part-0.jsonl", _records()[:1]), _file("p/part-1.jsonl", _records()[1:]), at="p/part-*.jsonl")),
    Kind("a manifest and its pictures", _files(_file("p/a.jsonl", [{"image": "../1.jpg", "text": TEXTS[0]}]), at="p"),
         PAIRS[:1]),
    Kind("a manifest beside other pictures",
         _files(_file("p/a.jsonl", _records("image_uri")), _file("p/x.jpg", JPEG[0]), _file("p/x.txt", "x"), at="p"),
         refused="a.jsonl"),
    Kind("tars and loose pictures",
         _files(_tar("p/a.tar"), _file("p/x.jpg", JPEG[0]), _file("p/x.txt", "x"), at="p"), refused=".tar"),
    Kind("imagefolder", _files(_file("p/metadata.jsonl", [{"file_name": "a.jpg", "text": TEXTS[0]}]),
                               _file("p/a.jpg", JPEG[0]), at="p"), [("a.jpg", TEXTS[0])]),
    Kind("a tar", _tar(), [("a.tar", text) for text in TEXTS]),
    Kind("a folder of tars", _files(_tar("p/0.tar"), at="p"), [("0.tar", text) for text in TEXTS]),
    Kind("ranges beyond the end",
         _files(_tar(), _file("a.jsonl", [{"image": "a.tar", "image_offset": 10**6, "image_length": 9, "text": "b"}]),
                at="a.jsonl"), refused="range"),
    Kind("ranges that are no whole numbers",
         _files(_tar(), _file("a.jsonl", _records(image_offset="1536.5", image_length=9)), at="a.jsonl"),
         refused="1536.5"),
    Kind("an embedding among the columns", _file("a.jsonl", _records(embedding=[0.1] * 768)), warned="embedding"),
    *(
        Kind(f"texts in {suffix}", _beside(suffix, [text.encode() for text in TEXTS]))
        for suffix in (".txt", ".TXT", ".caption", ".jpg.txt", ".text")
    ),
    Kind("texts in .json", _beside(".json", [json.dumps({"caption": text}).encode() for text in TEXTS])),
    Kind("texts in UTF-16", _beside(".txt", [text.encode("utf-16") for text in TEXTS])),
    Kind("pictures without a text", _files(_file("p/a.jpg", JPEG[0]), at="p"), refused="text"),
    Kind("pictures named .jfif and .jpe", _renamed("1.jfif", "2.jpe"), [("1.jfif", TEXTS[0]), ("2.jpe", TEXTS[1])]),
    Kind("pictures without a suffix", _renamed("first", "second"), [("first", TEXTS[0]), ("second", TEXTS[1])]),
    Kind("metadata of DGM4 that was moved",
         _files(_file("elsewhere/train.json", [{"id": 1, "image": "DGM4/a/b.jpg", "text": TEXTS[0], "fake_cls": "orig",
                                                "fake_image_box": [], "fake_text_pos": []}]),
                _file("DGM4/a/b.jpg", JPEG[0]), at="elsewhere/train.json"), [("DGM4/a/b.jpg", TEXTS[0])]),
    Kind("web addresses", _file("a.jsonl", [{"url": "https://host/1.jpg", "text": "b"}]), refused="img2dataset"),
    Kind("gzip", _file("a.jsonl.gz", gzip.compress("".join(json.dumps(r) + "\n" for r in _records()).encode()))),
]  # fmt: skip

NAMES = [
    Kind("file: addresses are decoded",
         lambda folder: _files(_file("a b.jpg", JPEG[0]),
                               _file("a.jsonl", [{"image": f"file://{folder}/a%20b.jpg", "text": TEXTS[0]}]),
                               at="a.jsonl")(folder), [("a b.jpg", TEXTS[0])]),
    Kind("composed for decomposed letters",
         _files(_file(NFD, JPEG[0]), _file("a.jsonl", [{"image": "café.jpg", "text": TEXTS[0]}]), at="a.jsonl"),
         [("café.jpg", TEXTS[0])], warned="caf"),
    Kind("%20 for a space",
         _files(_file("a b.jpg", JPEG[0]), _file("a.jsonl", [{"image": "a%20b.jpg", "text": TEXTS[0]}]), at="a.jsonl"),
         [("a%20b.jpg", TEXTS[0])], warned="a b.jpg"),
    Kind("a plus for a space",
         _files(_file("a b.jpg", JPEG[0]), _file("a.jsonl", [{"image": "a+b.jpg", "text": TEXTS[0]}]), at="a.jsonl"),
         [("a+b.jpg", TEXTS[0])], warned="a b.jpg"),
    Kind("spaces around a path", _file("a.jsonl", [{"image": " 1.jpg ", "text": TEXTS[0]}]), PAIRS[:1]),
    Kind("paths from the root of a site", _file("a.jsonl", [*_records(), {"image": "/1.jpg", "text": "b"}]),
         [*PAIRS, ("/1.jpg", "b")], failing={"not_found": 1}),
    Kind("only paths from the root of a site", _file("a.jsonl", [{"image": "/1.jpg", "text": TEXTS[0]}]), PAIRS[:1],
         warned="paths of pictures start at"),
    Kind("paths of Windows", _file("a.jsonl", [{"image": "C:\\news\\1.jpg", "text": "b"}]), refused="Windows"),
    Kind("another cloud", _file("a.jsonl", [{"image": "gs://bucket/1.jpg", "text": "b"}]), refused="gs://"),
]  # fmt: skip

PICTURES = [
    _judged("AVIF", "a.avif", _as("AVIF")),
    _judged("JPEG 2000", "a.jp2", _as("JPEG2000")),
    _no_picture("ICO", "a.ico", _as("ICO"), "ICO"),
    _no_picture("JPEG XL", "a.jxl", b"\xff\x0a" + bytes(100), "JPEG XL"),
    _judged("PNG with 3 MiB of text", "a.png", _large_text(), "text"),
    _judged("PNG with a broken chunk", "a.png", _broken_chunk(), "left out: tEXt"),
    _judged("JPEG that lacks two bytes", "a.jpg", JPEG[0][:-2], "end"),
    _judged("a stray byte before the picture", "a.jpg", b"\n" + JPEG[0], "before"),
    _judged("JPEG of which 98 % are there", "a.jpg", NOISE[: int(len(NOISE) * 0.98)], "cut off"),
    _no_picture("half a JPEG", "a.jpg", NOISE[: len(NOISE) // 2], "rows are there"),
    _no_picture("a Git LFS pointer", "a.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
                "Git LFS"),
    _no_picture("a page of a login", "a.jpg", b"<!DOCTYPE html><html>Log in</html>", "HTML"),
    _no_picture("JSON", "a.jpg", b'{"error": "no"}', "JSON"),
    _no_picture("an error of a store", "a.jpg", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
                "AccessDenied"),
    _judged("one pixel", "a.png", _as("PNG", (1, 1)), "tiny"),
    _judged("a strip", "a.png", _as("PNG", (9000, 3)), "tiny"),
    _judged("a long strip", "a.png", _as("PNG", (900, 40)), "elongated"),
]  # fmt: skip


@pytest.mark.parametrize("kind", [*TABLES, *NAMES, *PICTURES], ids=lambda kind: kind.name)
def test_an_input_is_judged_or_refused(tmp_path: Path, kind: Kind) -> None:
    for number, data in enumerate(JPEG, start=1):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    address = str(tmp_path / kind.build(tmp_path))
    settings = ScanSettings(input=address, out="OUT")
    if kind.refused is not None:
        with pytest.raises(InputNotFound) as caught:
            look_at(find_source(address, None, kind.options), settings, seconds=None).check(address)
        assert kind.refused in str(caught.value)
        assert len(str(caught.value)) < 1000
        return
    source = find_source(address, None, kind.options)
    look = look_at(source, settings, seconds=None)
    look.check(address)
    assert {code: group.count for code, group in look.failures.items()} == kind.failing
    rows = list(source.rows())
    assert [row.row_error for row in rows] == [None] * len(rows)
    texts = [row.text or (Path(row.text_uri).read_bytes().decode() if row.text_uri else None) for row in rows]
    assert texts == [text for _, text in kind.pairs]
    assert all(str(row.image_uri).endswith(picture) for row, (picture, _) in zip(rows, kind.pairs, strict=True))
    if kind.warned is not None:
        assert kind.warned in json.dumps(look.to_json(), ensure_ascii=False)

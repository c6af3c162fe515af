"""Tests of encodings: found, named, or refused."""

import json
from pathlib import Path

import pytest

from jobs.scan.input.tables.columns import TableOptions
from tests.support.tables import pairs_of, read_table, refusal_of, relative_image, write_table

LETTERS = {
    "cp1252": ["Un café à côté", "L’été “chaud”", "Größe"],
    "latin-1": ["El niño pequeño", "una señora mañana"],
    "cp1251": ["Мужчина идёт по улице в Москве", "Женщина с ребёнком в парке"],
    "cp1250": ["Żółta łódź płynie po rzece", "Mężczyzna idzie ulicą w Łodzi"],
    "cp1253": ["Ένας άνδρας περπατά στον δρόμο της Αθήνας"],
    "shift_jis": ["東京の街を歩く男性の写真です。", "犬が公園で遊んでいます"],
    "gb18030": ["一个男人走在北京的街道上", "一只狗在公园里玩耍，天气很好"],
    "euc_kr": ["한 남자가 서울의 거리를 걷고 있다", "공원에서 놀고 있는 개"],
    "utf-16": ["Größe", "日本"],
    "utf-16-le": ["Größe", "Москва"],
    "utf-32": ["Größe"],
}


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
@pytest.mark.parametrize("encoding", LETTERS)
def test_encodings_are_found_or_named(tmp_path: Path, name: str, encoding: str) -> None:
    texts = LETTERS[encoding]
    if name == "a.csv":
        data = "image,text\n" + "".join(f"{n}.jpg,{text}\n" for n, text in enumerate(texts))
    else:
        records = [{"image": f"{n}.jpg", "text": text} for n, text in enumerate(texts)]
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        data = lines if name == "a.jsonl" else json.dumps(records, ensure_ascii=False)
    path = write_table(tmp_path / name, data.encode(encoding))
    assert [text for _, _, text in pairs_of(path, TableOptions(encoding=encoding))] == texts
    assert [text for _, _, text in pairs_of(path)] == texts
    table = read_table(path)
    guessed = any("was guessed" in note for note in table.notes)
    assert guessed == (encoding not in ("utf-16", "utf-32"))
    assert table.describe()["encoding"]


@pytest.mark.parametrize(("text", "encoding"), [("Привет", "cp1251"), ("Москва", "cp1251"), ("한국어", "euc_kr")])
def test_an_ambiguous_short_text_is_no_guess(tmp_path: Path, text: str, encoding: str) -> None:
    path = write_table(tmp_path / "a.csv", f"image,text\na.jpg,{text}\n".encode(encoding))
    assert "or its encoding with --encoding" in refusal_of(path)
    assert pairs_of(path, TableOptions(encoding=encoding)) == [(None, "a.jpg", text)]


@pytest.mark.parametrize(
    ("text", "encoding"), [("中文标题", "gb18030"), ("東京タワー", "shift_jis"), ("台灣的街道", "big5")]
)
def test_a_short_text_of_frequent_characters_of_one_encoding_is_read(tmp_path: Path, text: str, encoding: str) -> None:
    assert pairs_of(write_table(tmp_path / "a.csv", f"image,text\na.jpg,{text}\n".encode(encoding))) == [
        (None, "a.jpg", text)
    ]


@pytest.mark.parametrize("encoding", ["utf8000", "", "base64", "rot13", "punycode", "a\0b", "idna"])
def test_unknown_encodings_are_refused(tmp_path: Path, encoding: str) -> None:
    message = refusal_of(write_table(tmp_path / "a.csv", "image,text\na.jpg,t\n"), TableOptions(encoding=encoding))
    assert "is unknown. Give a name that Python knows" in message


def test_a_bad_line_of_utf8_keeps_its_name_and_picture(tmp_path: Path) -> None:
    lines = [
        b"id,image,text,note",
        *(f"{n},{n}.jpg,é,x".encode() for n in range(9)),
        b"9,9.jpg,caf\xe9,x",
        b"10,10.jpg",
    ]
    lines += [b'11,11.jpg,"stray,x', b"12,12.jpg,t,x", b"13,13.jpg,t, with, commas,x"]
    rows = list(read_table(write_table(tmp_path / "a.csv", b"\n".join(lines))).rows())
    assert [row.row_id for row in rows] == list(range(1, 15))
    for row in rows[9:]:
        assert (row.custom_id, relative_image(row, tmp_path / "a")) == (str(row.row_id - 1), f"{row.row_id - 1}.jpg")
        assert row.row_error
        assert row.text is None
    assert rows[9].row_error == "the line is not UTF-8"
    good = [json.dumps({"id": n, "image": f"{n}.jpg", "text": "é"}, ensure_ascii=False).encode() for n in range(3)]
    bad = b'{"id": 3, "image": "3.jpg", "text": "caf\xe9"}'
    for name, data in (
        ("a.jsonl", b"\n".join([*good, bad])),
        ("a.json", b"[" + b",".join([*good, bad]) + b"]"),
        ("b.json", b'{"data":[' + b",".join([*good, bad]) + b"]}"),
    ):
        row = list(read_table(write_table(tmp_path / name, data)).rows())[-1]
        assert (row.custom_id, relative_image(row, tmp_path / "a"), row.text) == ("3", "3.jpg", None)
        assert "not UTF-8" in str(row.row_error)

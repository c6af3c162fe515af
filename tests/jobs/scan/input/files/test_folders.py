import json
from pathlib import Path

import pytest

from jobs.errors import InputNotFound
from jobs.scan.input.manifest import ManifestRow
from jobs.scan.input.sources import find_source
from jobs.scan.input.tables.table import TableOptions
from tests.support.input_files import make_tar, write_files
from tests.support.pictures import draw_jpeg


def _texts(path: Path | str) -> dict[str | None, str | None]:
    return {row.custom_id: row.text for row in find_source(str(path)).rows()}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b"a text\n"),
        ("a.TXT", b"a text\n"),
        ("a.jpg.txt", b"a text"),
        ("a.caption", b"a text"),
        ("a.json", b'{"caption": "a text", "width": 5}'),
        ("a.jpg.json", b'{"text": "a text"}'),
        ("a.json", b'"a text"'),
        ("a.txt", "a text\n".encode("utf-16")),
        ("a.txt", b"\xef\xbb\xbfa text"),
    ],
)
def test_a_text_lies_beside_its_picture(tmp_path: Path, name: str, data: bytes) -> None:
    write_files(tmp_path, {"a.jpg": b"x", name: data})
    assert _texts(tmp_path) == {"a.jpg": "a text"}


def test_a_text_of_another_encoding_is_read_with_a_warning(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"x", "a.txt": "Café “Zürich”".encode("cp1252")})
    (row,) = find_source(str(tmp_path)).rows()
    assert row.text == "Café “Zürich”"
    (warning,) = row.warnings
    assert warning.startswith(f"the text file {tmp_path}/a.txt is not UTF-8; cp1252 was guessed")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.json", b"{", "a.json is not JSON"),
        ("a.json", b'{"caption": 3}', "it must be a string"),
        ("a.txt", b"\0\1\2\0\0", "is no text: it has NUL characters"),
        ("a.txt", b"\xff\xfea", "is not utf-16-le"),
    ],
)
def test_a_text_that_cannot_be_read_is_an_error_of_its_row(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    write_files(tmp_path, {"a.jpg": b"x", name: data})
    with pytest.raises(InputNotFound, match=f"none of the first 1 texts of .* can be read: .*{reason}"):
        find_source(str(tmp_path))
    write_files(tmp_path, {"b.jpg": b"x", "b.txt": b"text b"})
    row, good = find_source(str(tmp_path)).rows()
    assert reason in str(row.row_error)
    assert good.text == "text b"


def test_the_first_of_several_texts_is_taken_and_the_others_are_counted(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"x", "a.caption": b"caption", "a.txt": b"text", "a.json": b"{}", "b.jpg": b"x"})
    source = find_source(str(tmp_path))
    assert [row.text for row in source.rows()] == ["text", None]
    described = source.describe()
    assert described["pictures"] == 2
    assert described["texts"]["missing"] == 1
    assert described["texts"]["others"] == 2
    assert described["texts"]["looked_for"][:2] == ["NAME.txt", "NAME.jpg.txt"]
    json.dumps(described)


def test_pictures_of_all_suffixes_are_rows_and_the_rest_is_counted(tmp_path: Path) -> None:
    suffixes = ("JPG", "jfif", "jpe", "avif", "heic", "jp2", "jxl", "png")
    write_files(tmp_path, {f"{number}.{suffix}": b"x" for number, suffix in enumerate(suffixes)} | {"0.txt": b"t"})
    write_files(
        tmp_path, {"film.mp4": b"x", "film2.MP4": b"x", "lonely.txt": b"x", "notes.pdf": b"x", ".DS_Store": b"x"}
    )
    write_files(tmp_path, {"Thumbs.db": b"x", "._0.JPG": b"x", "__MACOSX/0.jpg": b"x", ".cache/1.jpg": b"x"})
    source = find_source(str(tmp_path))
    assert [row.custom_id for row in source.rows()] == [f"{number}.{suffix}" for number, suffix in enumerate(suffixes)]
    described = source.describe()
    assert described["left_out"] == {".mp4": 2, ".pdf": 1, ".txt": 1}
    assert (described["strays"], described["files"]["count"]) == (5, 9)


def test_files_without_a_suffix_are_pictures_if_they_begin_as_such(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": draw_jpeg(1), "b": draw_jpeg(2), "a.txt": b"text a", "c": b"no picture"})
    assert _texts(tmp_path) == {"a": "text a", "b": None, "c": None}
    write_files(tmp_path / "words", {"a": b"words", "b": b"more"})
    with pytest.raises(InputNotFound, match="holds no table, picture or tar, but 2 without a suffix"):
        find_source(str(tmp_path / "words"))


def test_bare_pictures_find_their_texts_behind_longer_names_and_in_folders_with_a_dot(tmp_path: Path) -> None:
    names = ("cat", "cat-2", "cat 3")
    write_files(tmp_path / "v1.0", {name: draw_jpeg(1) for name in names} | {f"{name}.txt": b"t" for name in names})
    assert _texts(tmp_path / "v1.0") == dict.fromkeys(names, "t")


def test_a_picture_keeps_its_text_where_a_listing_has_a_folder_between_them(bucket: str) -> None:
    folder = f"s3://{bucket}/between"
    files = {"a.jpg": b"x", "a.k/a.k.jpg": b"x", "a.k/a.txt": b"no", "a.k/foo.jpg": b"x", "a.k/foo.jpg.txt": b"text f"}
    write_files(folder, files | {"a.k.png": b"x", "a.k.png.jpg": b"x", "a.k.txt": b"text k", "a.txt": b"text a"})
    assert _texts(folder) == {
        "a.jpg": "text a",
        "a.k.png": "text k",
        "a.k.png.jpg": None,
        "a.k/a.k.jpg": None,
        "a.k/foo.jpg": "text f",
    }


def test_two_forms_of_a_name_in_unicode_are_one_name(tmp_path: Path) -> None:
    composed, apart = "K\u00f6ln", "Ko\u0308ln"
    files = {f"{apart}_{number}.jpg": b"x" for number in range(3)} | {"Koz.jpg": b"x", "Koz.txt": b"z"}
    write_files(tmp_path, files | {f"{composed}_{number}.txt": f"text {number}".encode() for number in range(2)})
    assert _texts(tmp_path) == {f"{apart}_0.jpg": "text 0", f"{apart}_1.jpg": "text 1", f"{apart}_2.jpg": None} | {
        "Koz.jpg": "z"
    }


def test_a_folder_of_pictures_without_any_text_is_refused_unless_captions_are_made(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"x", "b.jpg": b"x", "texts/a.txt": b"t"})
    with pytest.raises(
        InputNotFound, match=r"none of its 2 pictures has a text.* a.txt, a.jpg.txt, a.caption or a.json"
    ):
        find_source(str(tmp_path))
    assert len(list(find_source(str(tmp_path), options=TableOptions(texts=False)).rows())) == 2


def test_a_pattern_of_pictures_finds_the_texts_beside_them(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"x", "a.txt": b"text a", "b.png": b"x", "b.txt": b"t", "deep/c.jpg": b"x"})
    assert _texts(tmp_path / "*.jpg") == {"a.jpg": "text a"}
    assert _texts(tmp_path / "**/*.jpg") == {"a.jpg": "text a", "deep/c.jpg": None}


def test_tars_and_loose_pictures_are_refused_with_both_patterns(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": b"x", "a.txt": b"t", "0.tar": make_tar({"b.jpg": b"x", "b.txt": b"t"})})
    with pytest.raises(InputNotFound, match=r"1 tar and 1 picture, and either .* Give '.*/\*.tar' or '.*/\*.jpg'"):
        find_source(str(tmp_path))
    assert _texts(tmp_path / "*.tar") == {"b.jpg": "t"}


def test_the_files_layout_of_img2dataset_is_a_folder_of_pictures(tmp_path: Path) -> None:
    sample = {"00000/000000000.jpg": b"x", "00000/000000000.txt": b"text", "00000/000000000.json": b'{"caption": "c"}'}
    write_files(tmp_path, sample | {"00000.parquet": b"PAR1", "00000_stats.json": b"{}"})
    source = find_source(str(tmp_path))
    assert [row.text for row in source.rows()] == ["text"]
    assert source.describe()["left_out"] == {".json": 1, ".parquet": 1}


def test_a_log_of_removed_rows_is_no_folder_of_parts(tmp_path: Path) -> None:
    write_files(tmp_path, {"_delta_log/00000.json": b"{}", "part-0.parquet": b"PAR1"})
    with pytest.raises(InputNotFound, match=r"is a table of Delta Lake.* Export it to Parquet"):
        find_source(str(tmp_path))


def test_pictures_and_texts_are_paired_in_s3(bucket: str) -> None:
    folder = f"s3://{bucket}/pairs"
    write_files(
        folder, {"a.jpg": b"x", "a.jpg.TXT": b"text a", "b.png": b"x", "b.json": b'{"text": "b"}', "c.jpg": b"x"}
    )
    assert _texts(folder) == {"a.jpg": "text a", "b.png": "b", "c.jpg": None}
    assert _texts(f"{folder}/*.png") == {"b.png": "b"}
    write_files(f"{folder}2", {"a": draw_jpeg(1), "a.txt": b"text a"})
    assert _texts(f"{folder}2") == {"a": "text a"}


def _row(path: Path) -> ManifestRow:
    (row,) = find_source(str(path)).rows()
    return row


@pytest.mark.parametrize("split", ["", "train/"])
def test_the_metadata_of_an_imagefolder_name_pictures_from_their_own_folder(tmp_path: Path, split: str) -> None:
    record = {"file_name": "a.jpg", "text": "text a"}
    write_files(tmp_path, {f"{split}metadata.jsonl": json.dumps(record).encode(), f"{split}a.jpg": b"x"})
    assert (_row(tmp_path).text, _row(tmp_path).image_uri) == ("text a", str(tmp_path / f"{split}a.jpg"))


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("https://host/a.jsonl", "Download it and give the file"),
        ("https://bucket.s3.eu-west-1.amazonaws.com/news/a.jsonl?x=1", "Write s3://bucket/news/a.jsonl"),
        ("gs://bucket/a", "AWS_ENDPOINT_URL=https://storage.googleapis.com"),
        ("s3a://bucket/a", "Write it as s3://"),
        ("hf://datasets/a/b", "hf download"),
        ("abfss://c@d/a", "azcopy"),
        (r"C:\data\a.jsonl", "is a path of Windows"),
    ],
)
def test_addresses_of_other_stores_are_refused_with_what_to_do(address: str, advice: str) -> None:
    with pytest.raises(InputNotFound) as caught:
        find_source(address)
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.zip", r"is a file of another kind. Unpack it \(unzip\) and give the folder"),
        ("a.jpg", "is a picture. Give its folder"),
        ("a.tar.gz", "is a compressed tar. .* Unpack them"),
        ("packed", "holds 2 compressed tars. .* Unpack them"),
        ("films", "holds no table, picture or tar, but 2 .mp4, 1 .srt"),
        ("*.nothing", "matches no file that is read"),
        ("pieces", r"t.csv.00, t.csv.01 look like pieces of a table: join them \(cat\)"),
        ("pieces/*.csv.*", r"matches no table, picture or tar, but t.csv.00, t.csv.01. .*join them"),
        ("hadoop", r"2 without a suffix. Name tables by what they are \(part-00000.jsonl"),
        ("saved", "1 .arrow. Write it as Parquet"),
        ("", "the input is empty"),
    ],
)
def test_a_refusal_says_what_is_there_and_what_to_do(tmp_path: Path, name: str, reason: str) -> None:
    files = (
        "a.zip",
        "a.jpg",
        "a.tar.gz",
        "packed/0.tgz",
        "packed/1.tar.zst",
        "films/a.mp4",
        "films/b.mp4",
        "films/a.srt",
        "pieces/t.csv.00",
        "pieces/t.csv.01",
        "hadoop/part-00000",
        "hadoop/part-00001",
        "saved/data.arrow",
    )
    write_files(tmp_path, dict.fromkeys(files, b"x"))
    with pytest.raises(InputNotFound, match=reason):
        find_source(str(tmp_path / name) if name else " ")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{a*,b?}.jpg", ["a.jpg", "a1.jpg", "b1.jpg"]),
        ("[!a]*.jpg", ["b1.jpg", "c.jpg"]),
        ("[&&a].jpg", ["a.jpg"]),
        ("{c,b[0-9]}.jpg", ["b1.jpg", "c.jpg"]),
        ("{a," + "x" * 300 + "}.jpg", ["a.jpg"]),
    ],
)
def test_a_pattern_means_what_a_shell_means(tmp_path: Path, pattern: str, names: list[str]) -> None:
    files = {f"{stem}.{suffix}": b"t" for stem in ("a", "a1", "b1", "c") for suffix in ("jpg", "txt")}
    write_files(tmp_path, files)
    assert list(_texts(f"{tmp_path}/{pattern}")) == names


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("[z-a].jpg", "has the letters .z-a., which no name has"),
        ("{100..5}.jpg", r"counts backwards: \{100..5\}"),
        ("[!]", "is not there|matches no file"),
        ("a" * 5000, "longer than a path can be: 50.. characters"),
        ("a" * 5000 + "/*.jpg", "longer than a path can be"),
    ],
)
def test_a_pattern_or_path_that_nothing_can_have_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(InputNotFound, match=reason):
        find_source(f"{tmp_path}/{name}")


def test_tables_that_are_not_read_are_named_with_the_reason(tmp_path: Path) -> None:
    ambiguous = b"image,text_a,text_b\na.jpg,one,two\n"
    write_files(tmp_path, {"b_two.csv": ambiguous, "a.jpg": draw_jpeg(1)})
    with pytest.raises(InputNotFound, match=r"no table that can be read, .*: .*b_two.csv"):
        find_source(str(tmp_path))
    write_files(tmp_path, {"good.csv": b"image,text\na.jpg,words of a\n"})
    (note,) = (note for note in find_source(str(tmp_path)).describe()["notes"] if note.startswith("Not read"))
    assert note.startswith(f"Not read as tables of pairs: b_two.csv ({tmp_path}/b_two.csv has the columns")


_CAPTIONS = {
    "ru": "Президент открыл школу;Кот на окне;Рабочие чинят дорогу;Снег в Москве;Пожар потушен;Выставка картин",
    "th": "ผู้คนเดินบนถนน;แมวนอนบนโต๊ะ;นายกรัฐมนตรีเปิดโรงเรียน;ฝนตกหนัก;เด็กเล่นฟุตบอล;รถไฟสายใหม่",
    "ja": "猫が窓の上にいる;大統領が学校を開いた;子供たちが遊ぶ;雨が降る;駅の前;山の写真",
    "en": "A cat;Snow in the city;The president opens a school;Fire;Rain;An exhibition",
    "hi": "बिल्ली खिड़की पर;बारिश;नया स्कूल खुला;बच्चे खेलते हैं;आग बुझी;शहर में बर्फ",
    "zh": "总统打开了新学校;猫在窗户上。;工人修路,下雨;孩子们 玩;火灾。;展览 开幕",
}
"""Short captions of some languages, too short for a guess each."""


@pytest.mark.parametrize(
    ("language", "encoding", "guessed"),
    [
        ("ru", "cp1251", "cp1251"),
        ("ru", "koi8_r", "koi8-r"),
        ("th", "cp874", "cp874"),
        ("ja", "cp932", "cp932"),
        ("ru", "utf-16-le", "utf-16-le"),
        ("en", "utf-16-be", "utf-16-be"),
        ("hi", "utf-16-le", "utf-16-le"),
        ("zh", "utf-16-le", "utf-16-le"),
    ],
)
def test_one_guess_is_made_for_all_texts_of_a_folder_that_are_not_utf8(
    tmp_path: Path, bucket: str, language: str, encoding: str, guessed: str
) -> None:
    captions = _CAPTIONS[language].split(";")
    files = {f"{number}.jpg": b"x" for number in range(8)} | {"6.txt": "Zürich".encode(), "7.txt": b"plain"}
    files |= {f"{number}.txt": caption.encode(encoding) for number, caption in enumerate(captions)}
    expected = {f"{number}.jpg": text for number, text in enumerate([*captions, "Zürich", "plain"])}
    write_files(tmp_path, files)
    write_files(f"s3://{bucket}/{language}-{encoding}", files)
    assert _texts(tmp_path) == _texts(f"s3://{bucket}/{language}-{encoding}") == expected
    warned = [row.warnings for row in find_source(str(tmp_path)).rows() if row.warnings]
    assert len(warned) == 6
    assert all(f"{guessed} was guessed from all such texts together" in warning for (warning,) in warned)


def test_a_text_that_the_guess_does_not_fit_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    captions = [caption.encode("utf-16-le") for caption in _CAPTIONS["ru"].split(";")]
    captions.append("Река".encode("utf-16-le")[:-1])
    captions.append("Zürich, Genève, Bâle ".encode() + b"\xff")  # UTF-8 with damage
    write_files(tmp_path, {f"{number}.jpg": b"x" for number in range(8)})
    write_files(tmp_path, {f"{number}.txt": caption for number, caption in enumerate(captions)})
    rows = list(find_source(str(tmp_path)).rows())
    assert [row.row_id for row in rows if row.row_error] == [6, 7]
    assert "is not utf-16-le" in str(rows[6].row_error)
    assert "is not utf-8" in str(rows[7].row_error)
    assert all("Say its encoding with --encoding" in str(row.row_error) for row in rows[6:])
    assert [row.text for row in find_source(str(tmp_path), limit=2).rows()] == ["Президент открыл школу", "Кот на окне"]


def test_a_text_that_is_a_git_lfs_pointer_is_named_as_such(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
    write_files(tmp_path, {"a.jpg": b"x", "a.txt": b"text a", "b.jpg": b"x", "b.txt": pointer})
    assert "is a Git LFS pointer and not the text" in str(list(find_source(str(tmp_path)).rows())[1].row_error)


def test_texts_that_a_pattern_does_not_mean_are_not_counted_as_left_out(tmp_path: Path) -> None:
    files = {"a/1.jpg": b"x", "a/1.txt": b"text", "a/2.png": b"x", "a/2.txt": b"t", "b/notes.txt": b"t"}
    write_files(tmp_path, files)
    described = find_source(f"{tmp_path}/**/*.jpg").describe()
    assert (described["files"]["count"], described["left_out"]) == (2, {})

"""Tests of CSV files as people have them: delimiters, quotes, headers, and lines that are broken."""

import gzip
from pathlib import Path

import pytest

from jobs.scan.input.tables.columns import TableOptions
from tests.support.tables import pairs_of, read_table, refusal_of, relative_image, write_table

PAIRS = [("1", "a.jpg", 'the "first", text'), ("2", "b.jpg", "second; one|bar")]


def _delimited(delimiter: str, escape: str = '""', end: str = "\n", tail: str = "") -> str:
    lines = [delimiter.join(("id", "image", "text"))]
    lines += [delimiter.join((id, image, '"' + text.replace('"', escape) + '"')) for id, image, text in PAIRS]
    return "".join(f"{line}{tail}{end}" for line in lines)


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("escape", ['""', '\\"'])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("trailing", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_is_read_whatever_its_delimiter_quotes_line_ends_and_encoding(
    tmp_path: Path, delimiter: str, escape: str, end: str, trailing: bool, encoding: str
) -> None:
    text = _delimited(delimiter, escape, end, delimiter if trailing else "")
    path = write_table(tmp_path / "a.csv", text.encode(encoding))
    assert pairs_of(path) == PAIRS
    described = read_table(path).describe()
    assert described["delimiter"] == {"\t": "tab"}.get(delimiter, delimiter)
    assert described["quotes"] == ("doubled" if escape == '""' else "backslash")
    assert described["header"] is True


@pytest.mark.parametrize("name", ["a.tsv", "a.TAB", "a.tsv.gz"])
def test_tsv_files_are_tables(tmp_path: Path, name: str) -> None:
    data = _delimited("\t").encode()
    assert (
        pairs_of(write_table(tmp_path / name, gzip.compress(data, mtime=0) if name.endswith("gz") else data)) == PAIRS
    )


def test_quotes_of_a_tsv_that_has_no_quoting_are_letters(tmp_path: Path) -> None:
    text = 'image\ttext\na.jpg\t"Hello", he said\nb.jpg\tan open " quote\nc.jpg\t"He\n'
    assert [pair[2] for pair in pairs_of(write_table(tmp_path / "a.tsv", text))] == [
        '"Hello", he said',
        'an open " quote',
        '"He',
    ]


def test_spaces_before_quotes_are_passed_over(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", 'image, text, id\na.jpg, "one, two", 7\nb.jpg, plain, 8\n')
    assert pairs_of(path) == [("7", "a.jpg", "one, two"), ("8", "b.jpg", "plain")]


def test_spaces_behind_every_delimiter_are_no_part_of_the_cells(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", "image_name| number| comment\na.jpg| 0| Two dogs\n")
    (row,) = read_table(path).rows()
    assert (row.text, row.metadata) == ("Two dogs", '{"number": "0"}')


def test_a_delimiter_that_is_not_found_is_asked_for(tmp_path: Path) -> None:
    message = refusal_of(write_table(tmp_path / "a.csv", "image~text\na.jpg~t\n"))
    assert "has the columns 'image~text'" in message
    assert message.endswith("If its cells have another delimiter, say it with --delimiter.")


def test_a_given_delimiter_is_used(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", "image~text\na.jpg~t\n")
    assert pairs_of(path, TableOptions(delimiter="~")) == [(None, "a.jpg", "t")]
    path = write_table(tmp_path / "b.csv", "image\ttext\na.jpg\tt\n")
    assert pairs_of(path, TableOptions(delimiter="tab")) == [(None, "b.jpg".replace("b", "a"), "t")]
    for wrong in ("", "ab", '"', "\n"):
        assert "is not one character" in refusal_of(path, TableOptions(delimiter=wrong))


@pytest.mark.parametrize(
    ("preface", "skipped"), [("\n\n", 2), ("# made by hand, 2024\n", 1), ("sep=;\n", 1), ("# image, text\n\n", 2)]
)
def test_lines_before_the_header_are_passed_over_and_line_numbers_stay_right(
    tmp_path: Path, preface: str, skipped: int
) -> None:
    path = write_table(tmp_path / "a.csv", f"{preface}image;text\na.jpg;one\n\nb.jpg;two\n")
    assert [(row.row_id, row.text) for row in read_table(path).rows()] == [(skipped + 1, "one"), (skipped + 3, "two")]


def test_a_header_may_stand_in_a_comment(tmp_path: Path) -> None:
    assert pairs_of(write_table(tmp_path / "a.csv", "# image,text\na.jpg,t\n")) == [(None, "a.jpg", "t")]


def test_a_table_without_a_header_is_refused_unless_columns_are_named_by_position(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", "a.jpg,one,x\nb.jpg,two,y\n")
    message = refusal_of(path)
    assert "seems to have no header: its first line is 'a.jpg', 'one', 'x'" in message
    assert "--image-column 1 --text-column 2" in message
    rows = list(read_table(path, TableOptions(image_column="1", text_column="2", id_column="3")).rows())
    assert [(row.row_id, row.custom_id, relative_image(row, path), row.text) for row in rows] == [
        (0, "x", "a.jpg", "one"),
        (1, "y", "b.jpg", "two"),
    ]
    assert "has no column '4'" in refusal_of(path, TableOptions(image_column="1", text_column="4"))
    assert "it needs a column 'text'" in refusal_of(path, TableOptions(image_column="1"))


def test_positions_also_name_columns_below_a_header(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", "picture,caption,title\na.jpg,one,x\n")
    assert pairs_of(path, TableOptions(image_column="1", text_column="3")) == [(None, "a.jpg", "x")]


@pytest.mark.parametrize("first", ["a.jpg,Photo", "#love,a.jpg", "//img/a.jpg,one", "#love,5", "text,a.jpg", "7,Title"])
def test_the_first_record_of_a_table_without_a_header_is_kept(tmp_path: Path, first: str) -> None:
    image, text = ("1", "2") if "jpg," in first or first.startswith("7") else ("2", "1")
    second = ",".join(("b.jpg", "two") if image == "1" else ("two", "b.jpg"))
    path = write_table(tmp_path / "a.csv", f"{first}\n{second}\n")
    rows = list(read_table(path, TableOptions(image_column=image, text_column=text)).rows())
    assert [(row.row_id, row.text) for row in rows] == [(0, first.split(",")[int(text) - 1]), (1, "two")]


def test_comments_above_a_table_without_a_header_are_passed_over(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", "# made by hand, 2024\na.jpg,one\n")
    assert pairs_of(path, TableOptions(image_column="1", text_column="2")) == [(None, "a.jpg", "one")]
    path = write_table(tmp_path / "b.csv", "filename,beschreibung\na.jpg,one\n")
    assert pairs_of(path, TableOptions(image_column="1", text_column="2")) == [(None, "a.jpg", "one")]


@pytest.mark.parametrize("lines", [2, 60])
def test_records_between_two_stray_quotes_are_errors_of_their_lines(tmp_path: Path, lines: int) -> None:
    text = [f"{n}.jpg,text {n}" for n in range(200)]
    text[100] = '100.jpg,"Hello'
    text[100 + lines] = f'{100 + lines}.jpg,bye"'
    rows = list(read_table(write_table(tmp_path / "a.csv", "image,text\n" + "\n".join(text))).rows())
    assert [row.row_id for row in rows] == list(range(1, 201))
    assert [row.row_id - 1 for row in rows if row.row_error] == list(range(100, 101 + lines))
    assert "look like records" in str(rows[100].row_error)


def test_many_lines_of_a_record_without_names_of_pictures_are_errors_of_their_lines(tmp_path: Path) -> None:
    text = [f"{n},images/{n},text" for n in range(60)]
    text[10], text[40] = '10,images/10,"Hello', '40,images/40,bye"'
    rows = list(read_table(write_table(tmp_path / "a.csv", "id,image,text\n" + "\n".join(text))).rows())
    assert [bool(row.row_error) for row in rows] == [10 <= n <= 40 for n in range(60)]


def test_a_text_of_many_lines_is_one_text(tmp_path: Path) -> None:
    poem = "\n".join(f"line {n}, of a poem" for n in range(50))
    records = [{"image": "a.jpg", "text": poem}, {"image": "b.jpg", "text": "see\nb.jpg\nand c.jpg, too\n\nor not"}]
    path = write_table(tmp_path / "a.csv", records)
    assert [pair[2] for pair in pairs_of(path)] == [record["text"] for record in records]


def test_a_line_that_is_too_short_or_out_of_place_never_names_a_wrong_picture(tmp_path: Path) -> None:
    text = "text,image\nfine,a.jpg\nwith, comma,b.jpg\nshort\n"
    rows = list(read_table(write_table(tmp_path / "a.csv", text)).rows())
    assert [row.image_uri is None for row in rows] == [False, True, True]

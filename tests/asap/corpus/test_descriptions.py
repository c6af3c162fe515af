"""Captions and explanations are joined to their pairs."""

import json
from typing import Any

import pytest

from asap.corpus.descriptions import Descriptions, Kind, PairKeys, join
from asap.corpus.report import JoinReport
from asap.errors import CorpusError

PICTURE, OTHER = "DGM4/origin/guardian/1.jpg", "DGM4/origin/bbc/2.jpg"


def pair(pair_id: str = "1", image: str = PICTURE, text: str = "a man waits") -> PairKeys:
    file = image.removeprefix("DGM4/")
    return PairKeys.of(pair_id, image, (file, f"s3://bucket/DGM4/{file}"), text)


def described(kind: Kind, content: Any, *pairs: PairKeys, name: str = "file.json") -> tuple[list[str], JoinReport]:
    data = content if isinstance(content, str) else json.dumps(content)
    return join(kind, pairs or [pair()], [Descriptions.parse(name, data.encode(), kind)])


@pytest.mark.parametrize(
    ("content", "name", "joined_by"),
    [
        ({"1": "a coat"}, "file.json", "by_id"),
        ({PICTURE: "a coat"}, "file.json", "by_path"),
        ({"DGM4/origin/gardian/1.jpg": "a coat"}, "file.json", "by_path"),
        ({"origin/guardian/1.jpg": "a coat"}, "file.json", "by_path"),
        ({"s3://bucket/DGM4/origin/guardian/1.jpg": "a coat"}, "file.json", "by_path"),
        ([{PICTURE: "a coat"}, {OTHER: "a hat"}], "file.json", "by_path"),
        ([{"id": 1, "caption": "a coat", "model": "x"}], "file.json", "by_id"),
        ([{"image": PICTURE, "caption": "a coat"}], "file.json", "by_path"),
        ('{"custom_id": "1", "caption": "a coat"}\n{"id": 2, "caption": "a hat"}\n', "file.jsonl", "by_id"),
        (json.dumps({"image": PICTURE, "caption": "a coat", "text": "a man waits"}), "file.ndjson", "by_path"),
        (json.dumps({PICTURE: "a coat"}) + '\n{"3": "a hat"}', "file.jsonl", "by_path"),
    ],
)  # fmt: skip
def test_a_caption_is_joined_by_id_or_path_from_every_form(content: Any, name: str, joined_by: str) -> None:
    values, report = described("caption", content, name=name)
    assert values == ["a coat"]
    assert (report.by_id, report.by_path, report.fallback) == (joined_by == "by_id", joined_by == "by_path", 0)


def test_the_published_language_model_scripts_list_with_its_comma_is_read() -> None:
    entries = ({PICTURE: "He waits, and waits.]"}, {OTHER: "A hat"})
    text = "[" + "".join(json.dumps(entry) + ",\n" for entry in entries) + "]"
    values, report = described("explanation", text, pair(), pair("2", OTHER), pair("3", "x/3.jpg", "none"))
    assert values == ["He waits, and waits.]", "A hat", "none"]
    assert (report.by_path, report.fallback, report.ambiguous) == (2, 1, 0)


def test_the_id_takes_precedence_over_the_path() -> None:
    assert described("caption", {PICTURE: "by path", "1": "by id"})[0] == ["by id"]


def test_the_first_file_with_an_entry_takes_precedence_and_the_text_comes_last() -> None:
    files = [Descriptions.parse(f"{n}.json", json.dumps(part).encode(), "explanation")
             for n, part in enumerate(({"1": "first"}, {"1": "second", "2": "second"}))]  # fmt: skip
    pairs = [pair("1", "a/1.jpg"), pair("2", "a/2.jpg"), pair("3", "a/3.jpg", "its text")]
    values, report = join("explanation", pairs, files)
    assert values == ["first", "second", "its text"]
    assert (report.files, report.by_id, report.fallback) == (["0.json", "1.json"], 2, 1)


@pytest.mark.parametrize("blank", [" ...! ", "", None])
def test_an_entry_without_a_word_is_counted_and_not_used(blank: str | None) -> None:
    values, report = described("caption", {"1": blank, PICTURE: "a coat"})
    assert (values, report.blank, report.by_path) == (["a coat"], 1, 1)


def test_a_lookup_without_the_other_pairs_returns_only_what_is_certain() -> None:
    content = [{"id": 1, "image": OTHER, "caption": "a hat"}, {"image": PICTURE, "caption": "a coat"},
               {"id": 2, "caption": "one"}, {"id": 2, "caption": "or another"}]  # fmt: skip
    file = Descriptions.parse("a.json", json.dumps(content).encode(), "caption")
    requested = [pair("1"), pair("1", OTHER), pair("2", "x/3.jpg"), pair("4", "x/3.jpg")]
    assert [file.lookup(one) for one in requested] == ["a coat", "a hat", None, None]
    alone = Descriptions.parse("b.json", b'{"1": "a coat"}', "caption")
    assert alone.lookup(pair("1#7"), shared_id="1") is None, "the entry does not say which pair with the id it is of"
    assert file.lookup(pair("1#7", OTHER), shared_id="1") == "a hat"


# Ids and paths that are shared


def test_every_pair_with_the_picture_gets_its_caption() -> None:
    pairs = [pair("1"), pair("1", text="a man runs")]
    for content in ({PICTURE: "a coat"}, {"1": "a coat"}):
        values, report = described("caption", content, *pairs)
        assert (values, report.ambiguous) == (["a coat"] * 2, 0)


def test_a_caption_with_an_id_of_two_pictures_is_used_only_if_it_names_its_picture() -> None:
    pairs = [pair("1"), pair("1", OTHER)]
    values, report = described("caption", {"1": "a coat"}, *pairs)
    assert (values, report.ambiguous, report.fallback) == (["a man waits"] * 2, 2, 2)
    values, report = described("caption", [{"id": 1, "image": OTHER, "caption": "a hat"}], *pairs)
    assert (values, report.by_id, report.fallback, report.ambiguous) == (["a man waits", "a hat"], 1, 1, 0)


def test_an_explanation_with_a_path_or_id_of_two_texts_is_used_only_if_it_names_its_text() -> None:
    pairs = [pair(), pair(text="a man runs")]
    for key in (PICTURE, "1"):
        values, report = described("explanation", {key: "he stands"}, *pairs)
        assert values == ["a man waits", "a man runs"]
        assert (report.fallback, report.ambiguous) == (2, 2)
    entries = [{"image": PICTURE, "text": "a man waits", "explanation": "he stands"},
               {"image": PICTURE, "text": "a man runs", "explanation": "he moves"}]  # fmt: skip
    values, report = described("explanation", entries, *pairs)
    assert (values, report.by_path) == (["he stands", "he moves"], 2)


def test_every_pair_with_the_text_gets_its_explanation() -> None:
    values, report = described("explanation", {"1": "he stands"}, pair("1"), pair("1", OTHER))
    assert (values, report.by_id) == (["he stands"] * 2, 2)


def test_two_different_explanations_of_one_path_are_ambiguous() -> None:
    values, report = described("explanation", [{PICTURE: "he stands"}, {PICTURE: "he sits"}])
    assert (values, report.ambiguous) == (["a man waits"], 1)
    values, report = described("explanation", [{PICTURE: "he stands"}, {PICTURE: "he stands"}])
    assert (values, report.by_path) == (["he stands"], 1)


def test_an_ambiguous_entry_does_not_hide_a_certain_one_of_a_later_file() -> None:
    sure = [{"id": 1, "text": "a man runs", "explanation": "he moves"}]
    contents = {"a.json": {PICTURE: "he stands"}, "b.json": sure}
    files = [Descriptions.parse(name, json.dumps(part).encode(), "explanation") for name, part in contents.items()]
    values, report = join("explanation", [pair(), pair(text="a man runs")], files)
    assert values == ["a man waits", "he moves"]
    assert (report.by_id, report.ambiguous) == (1, 1)


# Bad files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"file\.json cannot be read as JSON"),
        ('"text"', r"file\.json is not a JSON object from record id or image path to text, nor a list"),
        ("[1, 2]", r"file\.json is not a JSON object from record id"),
        ({"1": 7}, r"file\.json has 7 for '1', which is no text"),
        ({"1": {"caption": "x"}}, r"file\.json has \{.*\} for '1', which is no text"),
        ([{"id": 1, "caption": []}], r"file\.json has \[\] for 'entry 0', which is no text"),
        ([{"caption": "x"}], r"entry 0 of file\.json has the fields \['caption'\]; it needs 'caption', and 'id' or"),
        ([{"1": "x"}, {"id": 1, "words": "x"}], r"entry 1 of file\.json has the fields \['id', 'words'\]"),
        ([{"id": 1, "image": 7, "caption": "x"}], r"entry 0 of file\.json has an image or a text that is no string"),
    ],
)
def test_a_file_that_cannot_be_understood_is_named(content: Any, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        described("caption", content)

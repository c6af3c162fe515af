"""Other readings of words that hide what they say."""

import pytest

from asap.preprocessing.rereading import Reading, hides, is_latin, other_readings


@pytest.mark.parametrize(
    "word",
    [
        "min\u200bister",
        "min\u00adister",
        "m\u0456nister",
        "\uff4dinister",
        "&#109;inister",
        "&amp;",
        "a\ufe0f",
        "\u0430minister",
    ],
)
def test_a_word_that_hides_what_it_says_is_recognized(word: str) -> None:
    assert hides(word)


@pytest.mark.parametrize(
    "word",
    [
        "minister",
        "president's",
        "café",
        "AT&T",
        "$5",
        "Привет",
        "总统",
        "naïve",
        "&nosuch;",
        "’",
        "law&order;",
        "IT-специалист",
        "covid-тест",
        "TNF-α",
        "aiノート",
        "&#" + "1" * 5000 + ";",
    ],
)
def test_a_plain_word_hides_nothing(word: str) -> None:
    assert not hides(word)


def test_a_parted_word_has_a_joined_and_a_parted_reading() -> None:
    words = [reading.word for reading in other_readings("opens\u200bthe", in_latin_text=True)]
    assert words == ["opensthe", "opens the"]


def test_readings_name_their_changes_and_the_simplest_comes_first() -> None:
    readings = other_readings("&#xff4d;in\u0456ster", in_latin_text=True)
    assert readings[0] == Reading("\uff4din\u0456ster", ("entities undone",))
    assert readings[-1].word == "minister"
    assert readings[-1].changes == (
        "entities undone",
        "fullwidth and other forms replaced by plain ones",
        "look-alike letters replaced",
    )


def test_a_plain_word_has_no_other_reading() -> None:
    assert other_readings("minister", in_latin_text=True) == []


@pytest.mark.parametrize(("in_latin_text", "words"), [(True, ["cop"]), (False, [])])
def test_a_word_of_look_alikes_alone_is_latin_in_a_latin_text_only(in_latin_text: bool, words: list[str]) -> None:
    found = other_readings("\u0441\u043e\u0440", in_latin_text=in_latin_text)
    assert [reading.word for reading in found] == words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", True),
        ("$ 5", True),
        ("café 5", True),
        ("Привет мир", False),
        ("Привет the minister speaks", False),
        ("the minister реасе speaks", True),
        ("总统", False),
    ],
)
def test_a_text_is_latin_if_half_of_its_letters_are(text: str, expected: bool) -> None:
    assert is_latin(text) is expected


@pytest.mark.parametrize(
    ("word", "latin"),
    [
        ("\u0406ran", "Iran"),
        ("MIN\u0399STER", "MINISTER"),
        ("m\u0456nister", "minister"),
        ("\u0430-\u0431ank", None),
        ("Hawai\u02bbi", "Hawai'i"),
    ],
)
def test_a_look_alike_becomes_the_letter_of_its_case(word: str, latin: str | None) -> None:
    last = [reading.word for reading in other_readings(word, in_latin_text=False)][-1:]
    assert last == ([] if latin is None else [latin])


def test_a_form_that_grows_beyond_twice_its_length_is_no_reading() -> None:
    assert [reading.word for reading in other_readings("\ufdfa", in_latin_text=False)] == []

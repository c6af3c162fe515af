import json
from pathlib import Path
from typing import Any

import pytest

from asap.preprocessing.words import clean_caption, clean_word, split_words

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/labels_0.json").read_text("utf-8"))["pre_caption"]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["text"][:20])
def test_captions_are_cleaned_as_published(case: dict[str, Any]) -> None:
    assert clean_caption(case["text"], case["max_words"]) == case["clean"]


def test_a_word_is_cleaned_to_no_word_one_word_or_several() -> None:
    assert clean_word("--") == []
    assert clean_word("!?.") == []
    assert clean_word("President's") == ["presidents"]
    assert clean_word("tell-all/expose:") == ["tell", "all", "expose"]
    assert clean_word("<PERSON>,") == ["person"]
    assert clean_word("50%") == ["50%"]


def test_words_have_offsets_in_code_points_of_the_original() -> None:
    text = "  Tokyo 👍🏽 café\tre-opens\u00a0’after’\n"
    words = split_words(text)
    assert [word.word for word in words] == text.split()
    assert [word.index for word in words] == list(range(5))
    assert all(text[word.start : word.end] == word.word for word in words)

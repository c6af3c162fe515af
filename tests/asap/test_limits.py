import json

import pytest

from asap.errors import CheckpointError
from asap.limits import Limits, limits_sentences

LIMITS = Limits(
    made_from="drawn pictures", languages=("English", "French"), label_set="samm", prevalence=0.667, not_for="photos"
)


def test_the_limits_are_sentences_for_a_person() -> None:
    assert limits_sentences(LIMITS, "small@0123456789ab") == (
        "small was made from drawn pictures, with texts in English and French and manipulations as in SAMM. In its "
        "training, 67 % of the pairs were manipulated; where fewer are, more of the flagged pairs are wrong. Do not "
        "use it for photos."
    )
    assert limits_sentences(Limits(made_from="pairs of a corpus"), "m@1") == (
        "m was made from pairs of a corpus, with manipulations as in DGM4. "
        "Do not use it for any other kind of picture or text."
    )


def test_a_model_without_recorded_limits_says_so() -> None:
    assert limits_sentences(None, "imported@1").startswith("Nobody has recorded what imported was made from.")


def test_the_file_gives_back_the_limits() -> None:
    assert Limits.from_json(LIMITS.to_json().encode(), "limits.json") == LIMITS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "has no attribute"),
        ("{}", "made_from"),
        ('{"made_from": "x", "colour": 1}', "colour"),
        ('{"made_from": 3}', "made_from 3 is not a text"),
        ('{"made_from": " "}', "must not be blank"),
        ('{"made_from": "x", "languages": [1]}', "language 1 is not a text"),
        ('{"made_from": "x", "languages": 5}', "languages 5 is not a list"),
        ('{"made_from": "x", "languages": "English"}', "is not a list"),
        ('{"made_from": "x", "label_set": "other"}', "label set 'other' is unknown"),
        ('{"made_from": "x", "label_set": []}', "label_set \\[\\] is not a text"),
        ('{"made_from": "x", "prevalence": 1.5}', "prevalence 1.5 is not between 0 and 1"),
        ('{"made_from": "x", "prevalence": "half"}', "half"),
        ('{"made_from": "x", "prevalence": NaN}', "prevalence nan"),
        ('{"made_from": "x", "prevalence": true}', "prevalence True"),
    ],
)
def test_a_file_that_is_not_limits_is_refused_by_name(content: str, reason: str) -> None:
    with pytest.raises(
        CheckpointError, match=rf"model/limits.json cannot be used: .*{reason}.*It has the fields made_from"
    ):
        Limits.from_json(content.encode(), "model/limits.json")
    with pytest.raises(CheckpointError, match=r"limits\.json cannot be used"):
        Limits.from_json(b"\xff", "limits.json")


def test_every_field_of_the_file_is_written() -> None:
    assert json.loads(LIMITS.to_json()) == {
        "made_from": "drawn pictures", "languages": ["English", "French"], "label_set": "samm", "prevalence": 0.667,
        "not_for": "photos",
    }  # fmt: skip

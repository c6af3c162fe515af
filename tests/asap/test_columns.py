import numpy as np
import pytest

from asap.columns import Scores
from asap.labels import TYPES, VERDICTS
from asap.policy import Policy, apply_policy
from asap.preprocessing.text import EncodedText

POLICIES = [
    Policy(),
    Policy(manipulated=0.9, review=0.4, types=dict(zip(TYPES, (0.1, 0.9, 0.3, 0.6), strict=True)), word=0.8),
    Policy(unfamiliar=0.3, word=0.2),
    Policy(unfamiliar=0.0),
]


def encoded(text: str) -> EncodedText:
    return EncodedText(text=text, passes=(), word_count=len(text.split()), share_read=0.75)


@pytest.fixture
def scores() -> Scores:
    """Return the scores of 60 pairs: some without familiarity, some captioned, some exactly at a threshold."""
    rng = np.random.default_rng(0)
    texts = [encoded("  a  Señor 👩‍👧 smiles,\n twice "[: rng.integers(3, 29)] + "x") for _ in range(60)]
    found = Scores.empty(texts, rng.random(60) < 0.2)
    for values in (found.score_R, found.types_R4, found.box_R4, found.words_W, found.familiarity_R3):
        values[...] = rng.choice([0.1, 0.3, 0.4, 0.5, 0.6, 0.9], values.shape) + rng.choice([0, 0.01], values.shape)
    found.types_R4[np.ix_(found.captioned_R, [2, 3])] = np.nan
    found.familiarity_R3[:10] = np.nan
    found.familiarity_R3[found.captioned_R, 2] = np.nan
    found.agreement_R3[::2, 0] = 0.5
    return found


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_makes_of_columns_what_it_makes_of_each_pair(scores: Scores, policy: Policy) -> None:
    verdicts = set()
    for row, fields in enumerate(scores.fields(policy)):
        familiarity = [fields[name] for name in ("familiarity", "familiarity_image", "familiarity_text")]
        expected = apply_policy(
            policy,
            score=fields["score"],
            types=fields["types"],
            raw_box=fields["raw_box_px"],
            text=scores.texts[row].text,
            word_scores=fields["word_scores"],
            familiarity=familiarity[0],
        )
        assert {name: fields[name] for name in expected} == expected
        assert fields["unfamiliar_parts"] == policy.unfamiliar_parts(*familiarity)
        verdicts.add(fields["verdict"])
    assert verdicts >= set(VERDICTS[:1] + VERDICTS[2:3]), "the test would not notice a mix-up"


def test_fields_are_null_where_the_columns_have_no_number(scores: Scores) -> None:
    fields = list(scores.fields(Policy()))
    captioned = int(np.flatnonzero(scores.captioned_R)[0])
    assert fields[0]["familiarity"] is None
    assert (fields[0]["agreement_image_text"], fields[1]["agreement_image_text"]) == (0.5, None)
    assert (fields[captioned]["words"], fields[captioned]["word_scores"]) == (None, None)
    assert (fields[captioned]["types"]["text_swap"], fields[captioned]["text_read"]) == (None, None)


def test_each_pair_has_a_score_for_each_of_its_words(scores: Scores) -> None:
    fields = scores.fields(Policy())
    for text, captioned, one in zip(scores.texts, scores.captioned_R, fields, strict=True):
        assert captioned or len(one["word_scores"]) == text.word_count


def test_a_batch_without_pairs_has_no_fields() -> None:
    assert list(Scores.empty([], np.zeros(0, bool)).fields(Policy())) == []

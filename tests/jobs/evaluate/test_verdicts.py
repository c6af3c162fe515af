"""Verdicts of a policy on the pairs of an evaluation, in numbers and in a sentence."""

from typing import Any

import numpy as np
import pytest

from asap.policy import Policy
from jobs.evaluate.verdicts import first_sentence, verdict_shares
from tests.jobs.evaluate.test_charts import predictions

POLICY = Policy(manipulated=0.8, review=0.6, unfamiliar=0.1)


def shares(scores: list[float], familiarity: list[float] | None = None) -> dict[str, Any]:
    """Return the shares for two authentic and three manipulated pairs."""
    judged = predictions("orig", "orig", "face_swap", "text_swap", "face_swap")
    if familiarity is not None:
        judged = judged._replace(familiarity=np.array(familiarity))
    return verdict_shares(judged, np.array(scores), POLICY)


def test_pairs_are_found_and_accused_at_the_thresholds_of_the_policy() -> None:
    found = shares([0.1, 0.6, 0.9, 0.59, 0.7])
    assert found == {
        "policy_id": POLICY.policy_id, "found": pytest.approx(2 / 3), "accused": 0.5, "not_judged": None,
    }  # fmt: skip
    assert first_sentence(found) == (
        "Of 100 manipulated pairs this model finds 67, and of 100 authentic pairs it accuses 50, on pairs like those "
        "of this corpus."
    )


def test_pairs_that_are_not_judged_are_neither_found_nor_accused() -> None:
    found = shares([0.9, 0.9, 0.9, 0.9, 0.9], [0.5, 0.05, 0.5, 0.5, 0.05])
    assert (found["found"], found["accused"], found["not_judged"]) == (pytest.approx(2 / 3), 0.5, 0.4)
    assert first_sentence(found).endswith(
        "of this corpus. It does not judge 40 of 100 pairs, which look unfamiliar to it."
    )


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0, "0"), (0.0004, "fewer than 1"), (0.012, "1"), (0.985, "98"), (0.996, "more than 99"), (1.0, "100")],
)
def test_a_share_is_never_rounded_to_none_or_all(share: float, words: str) -> None:
    sentence = first_sentence({"found": share, "accused": None, "not_judged": None})
    assert sentence == f"Of 100 manipulated pairs this model finds {words}, on pairs like those of this corpus."

"""The verdicts of a policy in an evaluation, and the sentence about them that anyone understands."""

from __future__ import annotations

from typing import Any

import numpy as np

from asap.evaluation.metrics import Predictions
from asap.labels import FLAGGED
from asap.policy import Policy


def verdict_shares(predictions: Predictions, scores: np.ndarray, policy: Policy) -> dict[str, Any]:
    """Return what the policy makes of the pairs.

    `found` and `accused` are the shares of the manipulated and of the authentic pairs that are flagged; None without
    such pairs. `not_judged` is the share of all pairs that are unfamiliar; None if the model has no familiarity file.

    Args:
        predictions: The predictions of all pairs.
        scores: The probability of manipulation of each pair.
        policy: The policy of the model folder.
    """
    known = [None if np.isnan(value) else float(value) for value in predictions.familiarity]
    verdicts = [policy.verdict(score, familiarity) for score, familiarity in zip(scores.tolist(), known, strict=True)]
    flagged = np.array([verdict in FLAGGED for verdict in verdicts])
    not_judged = np.array([verdict == "unfamiliar" for verdict in verdicts])
    return {
        "policy_id": policy.policy_id,
        "found": _share(flagged[predictions.manipulated]),
        "accused": _share(flagged[~predictions.manipulated]),
        "not_judged": None if None in known else _share(not_judged),
    }


def _share(flags: np.ndarray) -> float | None:
    return float(flags.mean()) if len(flags) else None


def first_sentence(shares: dict[str, Any]) -> str:
    """Return the result of an evaluation as a manager reads it, from the output of `verdict_shares`."""
    parts = []
    if shares["found"] is not None:
        parts.append(f"of 100 manipulated pairs this model finds {_of_hundred(shares['found'])}")
    if shares["accused"] is not None:
        parts.append(f"of 100 authentic pairs it accuses {_of_hundred(shares['accused'])}")
    strange = ""
    if shares["not_judged"]:
        strange = f" It does not judge {_of_hundred(shares['not_judged'])} of 100 pairs, which look unfamiliar to it."
    sentence = ", and ".join(parts)
    return f"{sentence[:1].upper()}{sentence[1:]}, on pairs like those of this corpus.{strange}"


def _of_hundred(share: float) -> str:
    """Return a share as a number of 100, never rounded to none or to all."""
    if 0 < share < 0.01:
        return "fewer than 1"
    if 0.99 < share < 1:
        return "more than 99"
    return f"{100 * share:.0f}"

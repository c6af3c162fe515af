"""Result rows of findings, made one by one."""

from dataclasses import asdict
from typing import Any

import numpy as np

from asap.finding import Finding, box_fields
from jobs.scan.stages.result_rows import failure


def columns_of(finding: Finding) -> dict[str, Any]:
    """Return the columns of a finding, which has either a verdict or an error."""
    if finding.error is not None:
        return _common(finding) | failure(finding.error.code, str(finding.error))
    return _common(finding) | {
        "status": "ok",
        "verdict": finding.verdict,
        "score": finding.score,
        "types": finding.types,
        "flagged_types": finding.flagged_types,
        "box_px": box_fields(finding.box_px),
        "raw_box_px": box_fields(finding.raw_box_px),
        "words": None if finding.words is None else [asdict(word) for word in finding.words],
        "word_scores": finding.word_scores,
        "text_read": finding.text_read,
        "familiarity": _rounded_up(finding.familiarity),
        "familiarity_image": _rounded_up(finding.familiarity_image),
        "familiarity_text": _rounded_up(finding.familiarity_text),
        "agreement_image_text": finding.agreement_image_text,
        "agreement_image_caption": finding.agreement_image_caption,
        "agreement_text_caption": finding.agreement_text_caption,
    }


def _common(finding: Finding) -> dict[str, Any]:
    names = ("width", "height", "image_sha256", "model_id", "policy_id", "familiarity_id", "warnings")
    return {name: getattr(finding, name) for name in names}


def _rounded_up(familiarity: float | None) -> float | None:
    if familiarity is None:
        return None
    stored = np.float32(familiarity)
    return float(stored if float(stored) >= familiarity else np.nextafter(stored, np.float32(2)))

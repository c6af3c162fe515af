import json
import pickle

import pytest

from asap.errors import DecodeFailed
from asap.finding import NO_EVIDENCE, Finding, Word, lacks_evidence, score_text
from asap.labels import FLAGGED, VERDICTS


def test_a_finding_becomes_json() -> None:
    word = Word(index=1, start=4, end=9, word="happy", score=0.75)
    finding = Finding(
        verdict="manipulated", score=0.9, types={"text_attribute": 0.8}, flagged_types=["text_attribute"],
        raw_box_px=(1.0, 2.0, 3.5, 4.0), words=[word], word_scores=[0.1, 0.75], width=80, height=60,
        image_sha256="ab", model_id="m@1", policy_id="p", warnings=["a word was cut"], familiarity=0.4,
        familiarity_image=0.3, familiarity_text=0.6, agreement_image_text=0.2, familiarity_id="f",
        limits="m was made from drawings.",
    )  # fmt: skip

    fields = json.loads(json.dumps(finding.to_dict()))

    assert fields == {
        "verdict": "manipulated", "score": 0.9, "types": {"text_attribute": 0.8}, "flagged_types": ["text_attribute"],
        "box_px": None, "raw_box_px": {"x0": 1.0, "y0": 2.0, "x1": 3.5, "y1": 4.0},
        "words": [{"index": 1, "start": 4, "end": 9, "word": "happy", "score": 0.75}], "word_scores": [0.1, 0.75],
        "text_read": None, "familiarity": 0.4, "familiarity_image": 0.3, "familiarity_text": 0.6,
        "agreement_image_text": 0.2, "agreement_image_caption": None, "agreement_text_caption": None,
        "unfamiliar_parts": [], "familiarity_id": "f", "limits": "m was made from drawings.",
        "width": 80, "height": 60, "image_sha256": "ab", "model_id": "m@1", "policy_id": "p",
        "warnings": ["a word was cut"], "error_code": None, "error_detail": None,
    }  # fmt: skip


def test_an_error_becomes_a_code_and_a_detail() -> None:
    fields = Finding(model_id="m@1", policy_id="p", error=DecodeFailed("truncated JPEG")).to_dict()
    assert (fields["error_code"], fields["error_detail"]) == ("decode_failed", "truncated JPEG")
    assert (fields["verdict"], fields["score"], fields["types"]) == (None, None, None)
    assert "error" not in fields


def test_a_text_without_flagged_words_is_not_the_same_as_no_text() -> None:
    assert Finding(model_id="m@1", policy_id="p").to_dict()["words"] == []
    captioned = Finding(model_id="m@1", policy_id="p", words=None, word_scores=None).to_dict()
    assert (captioned["words"], captioned["word_scores"]) == (None, None)


def test_two_findings_do_not_share_their_lists() -> None:
    first, second = (Finding(model_id="m@1", policy_id="p") for _ in range(2))
    first.warnings.append("only mine")
    assert second.warnings == []


@pytest.mark.parametrize(
    ("score", "digits", "text"),
    [
        (1.0, 2, "1.00"),
        (0.9951, 2, ">0.99"),
        (0.9949, 2, "0.99"),
        (0.9999, 3, ">0.999"),
        (0.5, 3, "0.500"),
        (0, 2, "0.00"),
    ],
)
def test_a_score_below_1_is_never_shown_as_1(score: float, digits: int, text: str) -> None:
    assert score_text(score, digits) == text


@pytest.mark.parametrize("verdict", VERDICTS)
def test_only_a_flagged_pair_can_lack_evidence(verdict: str) -> None:
    word = Word(index=0, start=0, end=3, word="now", score=0.9)
    assert lacks_evidence(verdict, [], [], None) == (verdict in FLAGGED)
    assert lacks_evidence(verdict, None, None, None) == (verdict in FLAGGED)  # a captioned pair has no words
    assert not lacks_evidence(verdict, ["text_swap"], [], None)
    assert not lacks_evidence(verdict, [], [word], None)
    assert not lacks_evidence(verdict, [], [], (0.0, 0.0, 0.0, 0.0))


def test_a_pair_without_a_verdict_lacks_no_evidence() -> None:
    assert not lacks_evidence(None, [], [], None)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (("image",), "Not judged: the model has seen nothing like this picture."),
        (("text",), "Not judged: the model has seen nothing like this text."),
        (("image", "text"), "Not judged: the model has seen nothing like this picture and text."),
        ((), "Not judged: the model has seen nothing like this pair."),
    ],
)
def test_the_note_of_an_unfamiliar_pair_names_the_strange_part(parts: tuple[str, ...], reason: str) -> None:
    assert Finding(verdict="unfamiliar", unfamiliar_parts=parts, model_id="m", policy_id="p").note == reason


def test_the_note_of_a_judged_pair_says_only_that_evidence_is_missing() -> None:
    assert Finding(verdict="review", model_id="m", policy_id="p").note == NO_EVIDENCE
    assert Finding(verdict="review", flagged_types=["face_swap"], model_id="m", policy_id="p").note == ""
    assert Finding(verdict="authentic", model_id="m", policy_id="p").note == ""
    assert Finding(model_id="m", policy_id="p", error=DecodeFailed("broken")).note == ""


def test_a_finding_of_an_earlier_version_can_be_read_after_pickling() -> None:
    finding = Finding(verdict="authentic", score=0.1, model_id="m", policy_id="p")
    newer = ("familiarity", "familiarity_image", "familiarity_text", "unfamiliar_parts", "familiarity_id", "limits")
    for name in newer:
        del finding.__dict__[name]
    again = pickle.loads(pickle.dumps(finding))  # noqa: S301 - Ray does so between detectors and the API
    assert again == Finding(verdict="authentic", score=0.1, model_id="m", policy_id="p")

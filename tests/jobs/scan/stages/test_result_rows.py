import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from asap.errors import DecodeFailed
from asap.finding import Finding, Word
from jobs.scan.input.manifest import MANIFEST_SCHEMA
from jobs.scan.stages.result_rows import (
    CALLER_COLUMNS,
    RESULT_SCHEMA,
    SCHEMA_VERSION,
    failure,
    result_table,
)
from tests.support.finding_rows import columns_of

CALLERS = pa.Table.from_pylist(
    [{"row_id": 5, "custom_id": "a", "image_uri": "/a.jpg", "text": "the text", "metadata": "{}"}], MANIFEST_SCHEMA
)
FINDING = Finding(
    verdict="manipulated", score=0.75,
    types={"face_swap": 0.5, "face_attribute": 0.25, "text_swap": 1, "text_attribute": 0},
    flagged_types=["face_swap"], box_px=(1, 2, 3, 4), raw_box_px=(1, 2, 3, 4),
    words=[Word(0, 0, 3, "the", 0.5)], word_scores=[0.5, 0.25], width=10, height=20, image_sha256="ab",
    model_id="m@1", policy_id="p", warnings=["w"],
)  # fmt: skip


def test_a_row_keeps_every_field_of_its_finding() -> None:
    row = result_table(CALLERS, [columns_of(FINDING) | {"attempt": 2}]).to_pylist()[0]
    assert {name: row[name] for name in ("row_id", "custom_id", "text", "metadata")} == {
        "row_id": 5, "custom_id": "a", "text": "the text", "metadata": "{}",
    }  # fmt: skip
    assert (row["status"], row["verdict"], row["score"], row["attempt"]) == ("ok", "manipulated", 0.75, 2)
    assert row["types"] == FINDING.types
    assert row["box_px"] == {"x0": 1, "y0": 2, "x1": 3, "y1": 4}
    assert row["words"] == [{"index": 0, "start": 0, "end": 3, "word": "the", "score": 0.5}]
    assert (row["word_scores"], row["warnings"], row["model_id"]) == ([0.5, 0.25], ["w"], "m@1")
    assert (row["schema_version"], row["error_code"], row["caption"]) == (SCHEMA_VERSION, None, None)


def test_a_row_keeps_the_familiarities_and_the_id_of_their_file() -> None:
    finding = dataclasses.replace(
        FINDING, familiarity=0.5, familiarity_image=0.25, familiarity_text=None, familiarity_id="f1"
    )
    row = result_table(CALLERS, [columns_of(finding)]).to_pylist()[0]
    assert [row[name] for name in ("familiarity", "familiarity_image", "familiarity_text")] == [0.5, 0.25, None]
    assert row["familiarity_id"] == "f1"
    without = result_table(CALLERS, [columns_of(FINDING)]).to_pylist()[0]
    assert [without[name] for name in ("familiarity", "familiarity_image", "familiarity_id")] == [None] * 3


def test_a_row_keeps_the_agreements_of_its_finding() -> None:
    finding = dataclasses.replace(FINDING, agreement_image_text=0.5, agreement_text_caption=-0.25)
    row = result_table(CALLERS, [columns_of(finding)]).to_pylist()[0]
    names = ("agreement_image_text", "agreement_image_caption", "agreement_text_caption")
    assert [row[name] for name in names] == [0.5, None, -0.25]


@pytest.mark.parametrize("familiarity", [*np.random.default_rng(0).uniform(0, 1, 50).tolist(), 0.005, 1.0])
def test_a_pair_at_the_threshold_is_not_below_it_when_its_row_is_read_again(familiarity: float) -> None:
    finding = dataclasses.replace(FINDING, familiarity=familiarity)
    stored = result_table(CALLERS, [columns_of(finding)])["familiarity"][0].as_py()
    assert familiarity <= stored <= familiarity * (1 + 1e-6)
    assert stored <= 1


def test_a_pair_without_a_text_has_null_words_and_text_types() -> None:
    finding = Finding(
        verdict="authentic", score=0.0,
        types={"face_swap": 0, "face_attribute": 0, "text_swap": None, "text_attribute": None},
        words=None, word_scores=None, model_id="m", policy_id="p",
    )  # fmt: skip
    row = result_table(CALLERS, [columns_of(finding)]).to_pylist()[0]
    assert (row["words"], row["word_scores"]) == (None, None)
    assert (row["types"]["text_swap"], row["types"]["face_swap"]) == (None, 0)


def test_an_error_has_no_verdict_score_or_types() -> None:
    finding = Finding(words=None, word_scores=None, model_id="m", policy_id="p", error=DecodeFailed("broken"))
    row = result_table(CALLERS, [columns_of(finding)]).to_pylist()[0]
    assert (row["status"], row["error_code"], row["error_detail"], row["retryable"]) == (
        "error", "decode_failed", "broken", False,
    )  # fmt: skip
    assert [row[name] for name in ("verdict", "score", "types", "box_px", "words")] == [None] * 5


@pytest.mark.parametrize("rows", [[failure("not_found", "gone")], [columns_of(FINDING)]])
def test_every_table_has_the_declared_schema(rows: list[dict[str, object]]) -> None:
    assert result_table(CALLERS, rows).schema.equals(RESULT_SCHEMA)
    assert result_table(CALLERS.slice(0, 0), []).schema.equals(RESULT_SCHEMA)


def test_unstorable_strings_are_escaped_at_any_depth() -> None:
    row = failure("x", "bad \ud800") | {
        "caption": "a\0b", "caption_error": {"kind": "refusal", "detail": "no\0", "retryable": False},
        "warnings": ["\udfff"],
        "words": [{"index": 0, "start": 0, "end": 1, "word": "\0", "score": 1.0}],
    }  # fmt: skip
    found = result_table(CALLERS, [row]).to_pylist()[0]
    assert found["error_detail"] == r"bad \ud800"
    assert found["caption"] == r"a\u0000b"
    assert found["caption_error"] == {"kind": "refusal", "detail": r"no\u0000", "retryable": False}
    assert found["warnings"] == [r"\udfff"]
    assert found["words"][0]["word"] == r"\u0000"


def test_the_callers_columns_come_first_and_row_error_is_left_out() -> None:
    assert RESULT_SCHEMA.names[: len(CALLER_COLUMNS)] == CALLER_COLUMNS
    assert "row_error" not in RESULT_SCHEMA.names

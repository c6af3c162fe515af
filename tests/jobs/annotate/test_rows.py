"""Rows of annotations that are tried again."""

from __future__ import annotations

import pyarrow as pa

from jobs.annotate.rows import ANNOTATION_SCHEMA, with_former_cost


def _row(row_id: int, **columns: object) -> dict[str, object]:
    return {"row_id": row_id, "status": "ok", "schema_version": 1} | columns


def test_a_row_that_is_tried_again_keeps_its_cost_and_pays_for_the_new_try() -> None:
    paid = {"caption": "a crowd", "caption_is_new": True, "caption_input_tokens": 300, "caption_output_tokens": 5}
    failed = {"explanation_error": "refusal", "explanation_input_tokens": 40, "explanation_output_tokens": 9}
    known = {"caption": "a crowd", "caption_is_new": False, "caption_input_tokens": 0, "caption_output_tokens": 0}
    written = {"explanation": "a fair", "explanation_is_new": True, "explanation_input_tokens": 40,
               "explanation_output_tokens": 11}  # fmt: skip
    old = pa.Table.from_pylist([_row(7, **paid, **failed), _row(8, caption_error="timeout")], ANNOTATION_SCHEMA)
    new = pa.Table.from_pylist([_row(8, **known), _row(7, **known, **written)], ANNOTATION_SCHEMA)
    other, row = with_former_cost(old, new).to_pylist()
    assert (row["caption_is_new"], row["caption_input_tokens"], row["caption_output_tokens"]) == (True, 300, 5)
    assert (row["explanation_is_new"], row["explanation_input_tokens"], row["explanation_output_tokens"]) == (
        True,
        80,
        20,
    )
    assert (other["caption_is_new"], other["caption_input_tokens"]) == (False, 0)

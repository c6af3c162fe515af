"""The rows of a job on their way through the stages of vLLM."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from jobs.descriptions.engine import Failure, Outcome, Reply, Request, Usage
from jobs.descriptions.settings import DescriptionSettings
from jobs.descriptions.vllm_rows import ERROR, NOT_ASKED, PICTURE, PROMPT, Asked, Written, ask, outcome_of

CAPTIONS = DescriptionSettings(engine="vllm", source="m", max_new_tokens=5)
BATCH = pa.table(
    {
        "custom_id": ["a", "b", "c", "d", "e"],
        "thumbnail": pa.array([b"1", b"2", b"1", None, b"3"], pa.binary()),
        "pixels": pa.array([b"px"] * 5, pa.large_binary()),
        "retryable": pa.array([None] * 5, pa.bool_()),
        "warnings": pa.array([[]] * 5, pa.list_(pa.string())),
    }
)


def _requests(*names: str) -> list[Request]:
    return [Request(name, "", None) for name in names]


def test_rows_come_back_whole_with_one_outcome_for_those_that_asked_together() -> None:
    known = Failure("refusal", "no")
    asked = ask(
        BATCH,
        [Asked([0, 2], "Say it", b"1"), Asked([1], known=Reply("a", is_cut=True)), Asked([4], known=known), Asked([3])],
    )
    assert asked[PROMPT].to_pylist() == ["Say it", None, None, None]
    assert asked[PICTURE].to_pylist() == [b"1", None, None, None]
    errors = pa.array(["", NOT_ASKED, NOT_ASKED, NOT_ASKED])
    came = asked.append_column(ERROR, errors).append_column("generated_text", pa.array(["a man", None, None, None]))
    written = Written(CAPTIONS)
    rows = written.read(came)
    assert rows.schema.equals(BATCH.schema)
    assert rows["custom_id"].to_pylist() == ["a", "c", "b", "e", "d"]
    assert rows.drop_columns("thumbnail").equals(BATCH.take([0, 2, 1, 4, 3]).drop_columns("thumbnail"))
    assert rows["thumbnail"].null_count == len(BATCH), "the pictures are in the requests"
    requests = _requests("a", "b", "c", "e")
    assert written.describe(requests) == [Reply("a man"), Reply("a", is_cut=True), Reply("a man"), known]
    assert [written.is_new(request) for request in requests] == [True, False, False, False]


def test_a_batch_of_which_nothing_is_asked_comes_back_too() -> None:
    asked = ask(BATCH.drop_columns("thumbnail"), [Asked([position]) for position in range(len(BATCH))])
    came = asked.append_column(ERROR, pa.array([NOT_ASKED] * len(BATCH)))
    assert Written(CAPTIONS).read(came).equals(BATCH.drop_columns("thumbnail"))


@pytest.mark.parametrize(
    ("row", "outcome"),
    [
        ({"generated_text": " a man ", "num_input_tokens": 9}, Reply("a man", False, Usage(9, 0))),
        ({"generated_text": "a man in", "num_generated_tokens": 5}, Reply("a man in", True, Usage(0, 5))),
        ({"generated_text": "", "num_generated_tokens": 1}, Failure("empty", "the model wrote no words", Usage(0, 1))),
        (
            {"generated_text": "", "num_generated_tokens": 2},
            Failure("special_tokens", "the model wrote only special tokens", Usage(0, 2)),
        ),
        ({ERROR: "ValueError: too\nlong"}, Failure("model_error", "ValueError: too long")),
        ({ERROR: "OutOfMemoryError: CUDA"}, Failure("out_of_memory", "OutOfMemoryError: CUDA")),
    ],
)
def test_what_came_out_is_a_description_or_a_failure_of_a_kind(row: dict[str, Any], outcome: Outcome) -> None:
    assert outcome_of(CAPTIONS, {ERROR: ""} | row) == outcome

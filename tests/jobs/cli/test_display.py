"""The output of the commands: the progress of a scan, and a finding."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from asap.finding import NO_EVIDENCE, Finding
from asap.labels import TYPES
from jobs.cli.display import progress_shown, show_finding
from jobs.scan.passes import ScanProgress


def test_a_line_of_progress_comes_again_only_if_it_says_something_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.cli.display._LINE_EVERY_S", 0.0)
    file = io.StringIO()
    start = ScanProgress("starting the workers", 0, 200)
    half = ScanProgress("detecting", 100, 200, pairs_per_s=10.0)
    with progress_shown(Console(file=file, width=100)) as watch:
        for now in (start, start, half, replace(half, pairs_per_s=20.0), half, replace(half, errors=1), start):
            watch(now)
    assert [line.rstrip() for line in file.getvalue().splitlines()] == [
        "starting the workers  0/200 pairs",
        "detecting  100/200 pairs  10 pairs/s  0 flagged  0 errors",
        "detecting  100/200 pairs  10 pairs/s  0 flagged  1 errors",
        "starting the workers  0/200 pairs",
    ]


def _lines_of(**fields: Any) -> list[str]:
    """Return the lines of a finding without its ids."""
    file = io.StringIO()
    types = dict.fromkeys(TYPES, 0.2)
    finding = Finding(**({"score": 0.9, "types": types, "model_id": "m@1", "policy_id": "p"} | fields))
    Console(file=file, width=100).print(show_finding(finding, "A team"))
    return [line.strip() for line in file.getvalue().splitlines()[:-1]]


def test_an_unfamiliar_pair_is_shown_with_its_reason_and_without_scores() -> None:
    assert _lines_of(verdict="unfamiliar", unfamiliar_parts=("text",), limits="m was made from drawings.") == [
        "unfamiliar, not judged",
        "Not judged: the model has seen nothing like this text.",
        "text  A team",
        "m was made from drawings.",
    ]


def test_a_verdict_without_evidence_says_so_and_every_verdict_has_the_limits() -> None:
    lines = _lines_of(verdict="review", limits="m was made from drawings.")
    assert lines[0] == "review   score 0.900"
    assert NO_EVIDENCE in lines
    assert lines[-1] == "m was made from drawings."
    assert NO_EVIDENCE not in _lines_of(verdict="review", flagged_types=["text_swap"])
    assert NO_EVIDENCE not in _lines_of(verdict="authentic")

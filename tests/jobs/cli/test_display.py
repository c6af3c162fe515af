"""The output of a training run: lines in a file, a bar in a terminal."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from asap.finding import NO_EVIDENCE, Finding
from asap.labels import TYPES
from asap.training.objective import LOSS_NAMES, LossWeights
from jobs.cli.display import progress_shown, show_finding, training_shown
from jobs.scan.passes import ScanProgress

STEP: dict[str, Any] = {
    "pairs": 3_200, "of": 6_400, "losses": {"tmg": 0.25, "total": 1.5}, "pairs_per_s": 40.0, "rate": 1e-3,
}  # fmt: skip
VALIDATION: dict[str, Any] = {"pairs": 3_200, "of": 6_400, "validation": {"AUC": 0.75, "IoU50_boxed": None}}


def shown(events: list[dict[str, Any]], *, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=terminal, color_system=None)
    with training_shown(console) as show:
        for event in events:
            show(event)
    return file.getvalue()


def test_a_file_gets_a_line_for_every_event() -> None:
    events = [
        {"start": "bert.pth", "report": "taken [12]"}, {"stage": "decoding", "done": 3, "total": 4},
        {"corpus": ["train: 60 pairs"], "ingest": "cache"}, STEP, VALIDATION,
    ]  # fmt: skip
    assert shown(events, terminal=False).splitlines() == [
        "start from bert.pth",
        "taken [12]",
        "decoding  3/4",
        "train: 60 pairs",
        "pictures: cache",
        "loss terms: tmg = token grounding",
        "3200/6400 pairs  40 pairs/s  1 min left  tmg 0.250  total 1.500",
        "3200/6400 pairs  validation  AUC 0.750  IoU50_boxed -",
    ]


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


def test_a_terminal_gets_a_bar_that_moves_and_keeps_the_validations_above_it() -> None:
    output = shown([STEP, VALIDATION, STEP | {"pairs": 6_400, "losses": {"total": 1.25}}], terminal=True)
    assert output.count("3200/6400 pairs  validation  AUC 0.750") == 1
    last = [line for line in output.splitlines() if "loss" in line][-1]
    assert "6400/6400 pairs  40 pairs/s  0 min left  loss 1.250" in last
    assert "━" in last


def test_a_loss_term_is_explained_once_before_the_line_that_names_it_first() -> None:
    later = STEP | {"losses": {"tmg": 0.2, "vlc": 0.5, "total": 1.0}}
    lines = shown([STEP, STEP, later], terminal=False).splitlines()
    assert [number for number, line in enumerate(lines) if line.startswith("loss terms: ")] == [0, 3]
    assert lines[3] == "loss terms: vlc = vision-language contrast"


def test_every_loss_term_has_a_meaning_to_show() -> None:
    assert set(LOSS_NAMES) == set(vars(LossWeights()))


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

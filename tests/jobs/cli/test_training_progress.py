"""The output of a training run: lines in a file, and the same lines above a bar in a terminal."""

import io
from itertools import pairwise
from typing import Any

import pytest
from rich.console import Console

from asap.training.objective import LOSS_NAMES, LossWeights
from jobs.cli.training_progress import _METRIC_NAMES, Pace, TrainingLines, training_shown
from jobs.train.run_folder.log import HEADLINE

STEP: dict[str, Any] = {
    "pairs": 3_200, "of": 6_400, "losses": {"tmg": 0.25, "total": 1.5}, "pairs_per_s": 40.0, "rate": 1e-3, "at": 1000.0,
}  # fmt: skip
VALIDATION: dict[str, Any] = {"pairs": 3_200, "of": 6_400, "validation": {"AUC": 0.75, "token_F1": None}}


def shown(events: list[dict[str, Any]], *, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=terminal, color_system=None)
    with training_shown(console) as show:
        for event in events:
            show(event)
    return file.getvalue()


def lines_of(events: list[dict[str, Any]]) -> list[str]:
    return [line for line in shown(events, terminal=False).splitlines() if not line.startswith("  ")]


def test_a_file_gets_a_line_for_everything_that_is_new() -> None:
    events = [
        {"phase": "reading the corpus"}, {"phase": "reading the corpus"}, {"start": "bert.pth", "report": "taken [12]"},
        {"stage": "decoding", "done": 0, "total": 4_000}, {"stage": "decoding", "done": 32, "total": 4_000},
        {"stage": "decoding", "done": 4_000, "total": 4_000}, {"corpus": ["train: 60 pairs"], "ingest": "cache"},
        STEP, VALIDATION, {"note": "2 of 3 GPUs"},
    ]  # fmt: skip
    assert shown(events, terminal=False).splitlines() == [
        "reading the corpus",
        "start from bert.pth",
        "taken [12]",
        "decoding: 4,000",
        "decoding: done",
        "train: 60 pairs",
        "pictures: decoded once, into a cache on this machine (ingest=cache)",
        "loss terms; less is better:",
        "  tmg    manipulated words (token grounding)",
        "  total  the sum of the terms, each times its weight",
        "3,200 of 6,400 pairs  40 pairs/s  1 min left  total 1.500  tmg 0.250",
        "validation metrics:",
        "  AUC       real or fake: 0.5 is guessing, 1 is perfect",
        "  token_F1  right and complete marks of manipulated words (F1)",
        "3,200 of 6,400 pairs  validation  AUC 0.750  token_F1 -",
        "2 of 3 GPUs",
    ]


def test_a_file_gets_neither_control_characters_nor_repeated_lines() -> None:
    counts = [{"stage": "decoding", "done": done, "total": 9} for done in (0, 3, 3, 9, 9)]
    output = shown([{"phase": "waiting"}, *counts, {"phase": "waiting"}, STEP, STEP], terminal=False)
    assert not set("\r\x1b") & set(output)
    lines = output.splitlines()
    assert [line for line, following in pairwise(lines) if line == following] == []


def test_a_terminal_gets_the_lines_and_a_bar_with_the_loss_terms() -> None:
    events = [{"phase": "reading the corpus"}, STEP, VALIDATION, STEP | {"pairs": 6_400, "losses": {"total": 1.25}}]
    output = shown(events, terminal=True)
    assert "reading the corpus\n" in output
    assert output.count("3,200 of 6,400 pairs  validation  AUC 0.750") == 1
    assert output.count("tmg    manipulated words (token grounding)") == 1
    bar = [line for line in output.splitlines() if "━" in line][-1]
    assert "6,400 of 6,400 pairs  40 pairs/s" in bar
    assert "\ntotal 1.250" in output[output.index(bar) :]


def test_counts_have_a_line_every_few_seconds_with_the_time_that_is_left() -> None:
    file, now_s = io.StringIO(), 0.0
    lines = TrainingLines(Console(file=file, width=120), clock=lambda: now_s)
    for now_s in range(13):  # the clock reads it
        lines.show({"stage": "decoding train pictures", "done": 100 * now_s, "total": 10_000})
    assert file.getvalue().splitlines() == [
        "decoding train pictures: 10,000",
        "decoding train pictures: 500 of 10,000, 1 min left",
        "decoding train pictures: 1,000 of 10,000, 1 min left",
    ]


def test_a_loss_term_is_explained_once_before_the_line_that_names_it_first() -> None:
    later = STEP | {"losses": {"tmg": 0.2, "vlc": 0.5, "total": 1.0}, "pairs": 4_800}
    lines = shown([STEP, STEP, later], terminal=False).splitlines()
    assert [number for number, line in enumerate(lines) if line.startswith("loss terms")] == [0, 4]
    assert lines[5].split() == ["vlc", *LOSS_NAMES["vlc"].split()]


def test_the_time_left_is_that_of_recent_steps_and_says_if_a_later_stage_has_another_speed() -> None:
    def step(pairs: int, at: float, number: int) -> dict[str, Any]:
        stage = {"number": number, "of": 2, "ends": (3_200, 6_400)[number - 1]}
        return STEP | {"pairs": pairs, "at": at, "pairs_per_s": 100.0, "run_stage": stage}

    # The first stage does 100 pairs a second; the second one, with its pauses, does 10.
    lines = lines_of([step(100, 0, 1), step(3_200, 31, 1), step(3_300, 41, 2), step(3_400, 51, 2)])
    assert lines == [
        "stage 1 of 2 of the training, to 3,200 of 6,400 pairs",
        "loss terms; less is better:",
        "100 of 6,400 pairs  100 pairs/s  1 min left at the speed of this stage  total 1.500  tmg 0.250",
        "3,200 of 6,400 pairs  100 pairs/s  32 s left at the speed of this stage  total 1.500  tmg 0.250",
        "stage 2 of 2 of the training, to 6,400 of 6,400 pairs",
        "3,300 of 6,400 pairs  100 pairs/s  31 s left  total 1.500  tmg 0.250",
        "3,400 of 6,400 pairs  100 pairs/s  5 min left  total 1.500  tmg 0.250",
    ]


def test_the_pace_forgets_early_work_and_what_a_run_repeats() -> None:
    pace = Pace()
    assert pace.per_s is None
    pace.mark(0, 0.0)
    assert pace.per_s is None
    for second in range(1, 41):
        pace.mark(100 * second if second < 20 else 2_000 + second, float(second))
    assert pace.per_s == pytest.approx(1)
    pace.mark(500, 41.0)  # back to a checkpoint
    assert pace.per_s is None
    pace.mark(510, 42.0)
    assert pace.per_s == pytest.approx(10)


def test_every_loss_term_and_every_validation_metric_has_a_meaning_to_show() -> None:
    assert set(LOSS_NAMES) == set(vars(LossWeights()))
    assert set(_METRIC_NAMES) == set(HEADLINE)

"""What a training run shows: lines where they are kept, a bar where somebody looks on."""

import io
from typing import Any

from rich.console import Console

from jobs.cli.display import training_shown

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
        "3200/6400 pairs  40 pairs/s  1 min left  tmg 0.250  total 1.500",
        "3200/6400 pairs  validation  AUC 0.750  IoU50_boxed -",
    ]


def test_a_terminal_gets_a_bar_that_moves_and_keeps_the_validations_above_it() -> None:
    told = shown([STEP, VALIDATION, STEP | {"pairs": 6_400, "losses": {"total": 1.25}}], terminal=True)
    assert told.count("3200/6400 pairs  validation  AUC 0.750") == 1
    last = [line for line in told.splitlines() if "loss" in line][-1]
    assert "6400/6400 pairs  40 pairs/s  0 min left  loss 1.250" in last
    assert "━" in last

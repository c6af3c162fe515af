"""The card of a trained model: what it is, how it was made, what it reached, what it is not."""

from __future__ import annotations

import json
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

from asap.labels import TEXT_TYPES, TYPES
from asap.model.config import ModelConfig
from asap.weights.start import split_source
from jobs.train.settings import TrainSettings

_CARD = """# {name}

An ASAP model ({parameters_text}) for image-text pairs: is the pair manipulated, in which of four ways, where is the
face box, which are the words.

## Figures

On the test split of {test_corpus}, {pairs} pairs that training never saw:

| figure | value |
|---|---|
{figures}

Average precision by type: {types}.{elsewhere}

`IoU50` counts a pair without a box as right only if the predicted box is empty; `gated` empties the box unless an
image type is predicted; `boxed` is over the pairs that have one.

## Training

On {corpus_text}; {trained} pairs were shown in {hours:.1f} hours. The model is {checkpoint}, its weights
averaged over the steps. The commands that made it:

```sh
{commands}
```

and the settings that they stand for:

```json
{settings}
```

## Limits

Its thresholds are halves, not calibrated to any precision or prevalence: two thirds of the corpus is manipulated,
and where manipulation is rare most of what it flags will be wrong until the thresholds are chosen for that.
{limits}
"""

_NEWSROOM_LIMITS = (
    "It has seen drawn pictures and grammar-made captions only. On photographs its scores mean nothing: it is here\n"
    "to show and test the system, and a model for real pairs is trained on real pairs."
)

FIGURES = (
    "AUC", "ACC", "EER", "mAP", "OF1", "CF1", "IoU_mean", "IoU50", "IoU_mean_gated", "IoU50_gated", "IoU75_gated",
    "IoU_mean_boxed", "IoU50_boxed", "token_precision", "token_recall", "token_F1",
)  # fmt: skip


def model_card(
    settings: TrainSettings, config: ModelConfig, report: dict[str, Any], progress: Path, checkpoint: str
) -> str:
    """The text of a model folder's README.md. `checkpoint`: which of the run's it is, in words."""
    test_corpus = Path(settings.test_corpus or settings.corpus)
    seed = _newsroom(Path(settings.corpus))
    shown = settings.identity() | {"loss_weights": vars(settings.objective.weights)}
    for name in ("corpus", "test_corpus"):
        shown.pop(name)
    shown |= {name: value for name, value in _placeless(settings).items() if name in shown}
    return _CARD.format(
        name=settings.name,
        parameters_text=f"{config.image_size} px, width {config.width}, {settings.preset} preset",
        test_corpus=_describe(test_corpus),
        pairs=report["pairs"],
        figures="\n".join(f"| {name} | {report[name]:.3f} |" for name in FIGURES if report[name] is not None),
        types=", ".join(
            f"{name} {value:.3f}" for name, value in zip(TYPES, report["AP"], strict=True) if value is not None
        ),
        elsewhere=_elsewhere(report.get("AP_elsewhere")),
        corpus_text=_describe(Path(settings.corpus)),
        trained=settings.pairs,
        checkpoint=checkpoint,
        hours=_hours(progress),
        commands="\n".join(_commands(settings)),
        settings=json.dumps(shown, indent=2),
        limits=_NEWSROOM_LIMITS if seed else "",
    )


def _elsewhere(precisions: list[float | None] | None) -> str:
    """How much of a text's verdict is the picture's."""
    told = [
        f"{name} {value:.3f}" for name, value in zip(TEXT_TYPES, precisions or (), strict=False) if value is not None
    ]
    return f" Beside the picture of another pair the text types have {', '.join(told)}." if told else ""


def _commands(settings: TrainSettings) -> list[str]:
    """What to type to make the model again."""
    test = settings.test_corpus
    lines = [_drawing(Path(settings.corpus), "corpus"), *([_drawing(Path(test), "unseen")] if test else [])]
    given = {"corpus", "test_corpus", "out", "name", "address", "device"}
    changed = settings.model_dump(exclude=given, exclude_defaults=True)
    changed |= {name: value for name, value in _placeless(settings).items() if name in changed}
    options = "".join(f" --set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in changed.items())
    unseen = " --test-corpus unseen" if test else ""
    return [*filter(None, lines), f"asap train corpus --out run --name {settings.name}{unseen}{options}"]


def _placeless(settings: TrainSettings) -> dict[str, Any]:
    """What the run started from, without where that lay on the machine that trained it."""
    return {
        "init": [_without_folders(source) for source in settings.init],
        "tokenizer": _without_folders(settings.tokenizer) if settings.tokenizer else settings.tokenizer,
    }


def _without_folders(source: str) -> str:
    kind, place = split_source(source)
    return f"{kind}{Path(place).name}" if place.startswith("/") else source


def _drawing(corpus: Path, name: str) -> str:
    """The command that draws a corpus; empty for one that was not drawn."""
    made = _newsroom(corpus)
    if made is None:
        return ""
    splits = " ".join(str(made["splits"][split]) for split in ("train", "val", "test"))
    return f"asap newsroom {name} --pairs {made['pairs']} --seed {made['seed']} --splits {splits}"


def _newsroom(corpus: Path) -> dict[str, Any] | None:
    made = corpus / "newsroom.json"
    return dict(json.loads(made.read_text(encoding="utf-8"))) if made.exists() else None


def _describe(corpus: Path) -> str:
    made = _newsroom(corpus)
    if made is None:
        return f"the corpus `{corpus.name}`"
    return f"a drawn corpus ({made['corpus_version']}, seed {made['seed']}, {made['pairs']} pairs)"


def _hours(progress: Path) -> float:
    """Time spent in steps, from the first line to the last; pauses of over ten minutes do not count."""
    times = [json.loads(line)["at"] for line in progress.read_text(encoding="utf-8").splitlines()]
    return sum(gap for gap in (b - a for a, b in pairwise(times)) if gap < 600) / 3600

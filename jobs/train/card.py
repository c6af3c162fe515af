"""The card of a trained model: its purpose, metrics, training and limits."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from asap.corpus.reader import Record
from asap.evaluation.table import intervals_sentence, words_sentence
from asap.labels import TEXT_TYPES, TYPES, is_manipulated
from asap.limits import Limits, limits_sentences
from asap.model.config import ModelConfig
from asap.weights.start import split_source
from jobs.train.settings import TrainSettings

_CARD = """# {name}

An ASAP model ({size}) for image-text pairs. It detects whether a pair is manipulated and with which of
four types of manipulation, and it locates the manipulated face and the manipulated words.

## Metrics

On the test split of {test_corpus}, {pairs} pairs that training never saw:

| metric | value | 95 % interval |
|---|---|---|
{metrics}

{words}{intervals}Average precision by type: {types}.{elsewhere}

`IoU50` counts a pair without a box as correct only if the predicted box is empty. `gated` metrics empty the predicted
box unless an image type is predicted. `boxed` metrics are over the pairs that have a box. `token` metrics count the
tokens of all pairs together, so a marked token of an authentic text lowers the precision and the F1;
`token_F1_manipulated` is over the manipulated texts alone.

## Training

The model was trained on {corpus}; {trained} were shown in {hours:.1f} hours. It is {checkpoint}, with
the weights {averaged}. These commands made it:

```sh
{commands}
```

These are all settings of the run:

```json
{settings}
```

## Limits

{limits}

{familiarity}

All thresholds are 0.5. They are not calibrated to a precision or a prevalence. Where manipulation is rarer than in the
training, most flagged pairs will be wrong until the thresholds are calibrated for that prevalence.
"""

_NEWSROOM = {
    "made_from": "drawn pictures",
    "languages": ("English",),
    "not_for": "photographs or texts of other kinds",
}
"""Limits of a model of a corpus that `asap newsroom` drew."""

METRICS = (
    "AUC", "ACC", "EER", "mAP", "OF1", "CF1", "IoU_mean", "IoU50", "IoU_mean_gated", "IoU50_gated", "IoU75_gated",
    "IoU_mean_boxed", "IoU50_boxed", "token_precision", "token_recall", "token_F1", "token_F1_manipulated",
)  # fmt: skip
"""The metrics of the card, by their names in `asap.evaluation.metrics`."""


def model_card(
    settings: TrainSettings,
    config: ModelConfig,
    report: dict[str, Any],
    progress: Path,
    checkpoint: str,
    limits: Limits,
    familiarity: str,
) -> str:
    """Return the text of a model folder's README.md.

    Args:
        settings: The settings of the run.
        config: The configuration of the model.
        report: The evaluation of the model on the test split.
        progress: The file `progress.jsonl` of the run, for its duration.
        checkpoint: A description of the checkpoint that became the model.
        limits: What the model was made from and must not be used for.
        familiarity: A sentence about its familiarity file.
    """
    shown = settings.identity() | {"loss_weights": vars(settings.objective.weights)}
    for name in ("corpus", "test_corpus"):
        shown.pop(name)
    shown |= {name: value for name, value in _sources_without_folders(settings).items() if name in shown}
    # The time in steps: pauses of ten minutes and more are those between starts of the run.
    times_s = [json.loads(line)["at"] for line in progress.read_text(encoding="utf-8").splitlines()]
    seconds = sum(gap for gap in (later - earlier for earlier, later in pairwise(times_s)) if gap < 600)
    # Average precision next to the picture of another pair shows how much the picture contributes to the text types.
    precisions = report.get("AP_elsewhere")
    limits_of = report.get("intervals", {}).get("figures", {})
    elsewhere = _list_values(TEXT_TYPES, precisions, limits_of.get("AP_elsewhere")) if precisions else ""
    return _CARD.format(
        name=settings.name,
        size=f"{config.image_size} px, width {config.width}, {settings.size} preset",
        test_corpus=_describe(Path(settings.test_corpus or settings.corpus)),
        pairs=report["pairs"],
        metrics="\n".join(
            f"| {name} | {report[name]:.3f} | {_range(limits_of.get(name))} |"
            for name in METRICS
            if report.get(name) is not None
        ),
        words=f"{about}\n\n" if (about := words_sentence(report)) else "",
        intervals=f"{made}\n\n" if (made := intervals_sentence(report)) else "",
        types=_list_values(TYPES, report["AP"], limits_of.get("AP")) or "undefined on this split",
        elsewhere=f" Next to the picture of another pair: {elsewhere}." if elsewhere else "",
        corpus=_describe(Path(settings.corpus)),
        trained=f"{settings.epochs:g} epochs" if settings.pairs is None else f"{settings.pairs} pairs",
        averaged="averaged over the steps" if settings.weights == "average" else "of its last step",
        hours=seconds / 3600,
        checkpoint=checkpoint,
        commands="\n".join(_commands(settings)),
        settings=json.dumps(shown, indent=2),
        limits=limits_sentences(limits, settings.name),
        familiarity=familiarity,
    )


def model_limits(settings: TrainSettings, config: ModelConfig, records: Sequence[Record]) -> Limits:
    """Return the limits of a model: what the settings say, and what is known of the corpus.

    Args:
        settings: The settings of the run.
        config: The configuration of the model.
        records: The pairs of the training, in which the prevalence is measured.
    """
    corpus = Path(settings.corpus)
    stated = {
        name: value for name in ("made_from", "languages", "not_for") if (value := getattr(settings, name)) is not None
    }
    known: dict[str, Any] = _NEWSROOM if _newsroom(corpus) else {"made_from": f"pairs of the corpus {corpus.name}"}
    manipulated = sum(is_manipulated(record.fake_cls, record.labels) for record in records)
    return Limits(**known | stated, label_set=config.label_set, prevalence=manipulated / len(records))


def _list_values(
    names: Sequence[str], values: Sequence[float | None], intervals: Sequence[list[float] | None] | None = None
) -> str:
    """Return names with their values and intervals, without those that the corpus does not define."""
    rows = zip(names, values, intervals or [None] * len(names), strict=True)
    return ", ".join(
        f"{name} {value:.3f}" + (f" ({_range(limits)})" if limits else "")
        for name, value, limits in rows
        if value is not None
    )


def _range(limits: list[float] | None) -> str:
    return f"{limits[0]:.3f} to {limits[1]:.3f}" if limits else "–"


def _commands(settings: TrainSettings) -> list[str]:
    """Return the commands that make the model again."""
    test = settings.test_corpus
    lines = [_drawing_command(Path(settings.corpus), "corpus")]
    if test:
        lines.append(_drawing_command(Path(test), "unseen"))
    # Settings of the machines are left out, and so are those with an option of their own.
    left_out = {"corpus", "test_corpus", "out", "name", "address", "device"}
    # The defaults are those that follow from the preset, the recipe and the first weights.
    kinds = settings.model_dump(include={"preset", "recipe", "init"}, exclude_defaults=True)
    defaults = TrainSettings(corpus="", out="", **kinds).model_dump()
    values = settings.model_dump(exclude=left_out)
    changed = {name: value for name, value in values.items() if value != defaults[name] or name in kinds}
    changed |= {name: value for name, value in _sources_without_folders(settings).items() if name in changed}
    options = "".join(f" --set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in changed.items())
    unseen = " --test-corpus unseen" if test else ""
    return [*filter(None, lines), f"asap train corpus --out run --name {settings.name}{unseen}{options}"]


def _sources_without_folders(settings: TrainSettings) -> dict[str, Any]:
    """Return the sources that the run started from, without their folders on the machine that trained it."""

    def without_folders(source: str) -> str:
        kind, path = split_source(source)
        return f"{kind}{Path(path).name}" if path.startswith("/") else source

    return {
        "init": [without_folders(source) for source in settings.init],
        "tokenizer": without_folders(settings.tokenizer) if settings.tokenizer else settings.tokenizer,
    }


def _drawing_command(corpus: Path, name: str) -> str:
    """Return the command that draws a corpus; empty for a corpus that was not drawn."""
    made = _newsroom(corpus)
    if made is None:
        return ""
    splits = " ".join(str(made["splits"][split]) for split in ("train", "val", "test"))
    return f"asap newsroom {name} --pairs {made['pairs']} --seed {made['seed']} --splits {splits}"


def _newsroom(corpus: Path) -> dict[str, Any] | None:
    """Return how a drawn corpus was made; None for another corpus."""
    made = corpus / "newsroom.json"
    return dict(json.loads(made.read_text(encoding="utf-8"))) if made.exists() else None


def _describe(corpus: Path) -> str:
    """Return a description of a corpus for the card, without its folder."""
    made = _newsroom(corpus)
    if made is None:
        return f"the corpus `{corpus.name}`"
    return f"a drawn corpus ({made['corpus_version']}, seed {made['seed']}, {made['pairs']} pairs)"

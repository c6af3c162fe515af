"""Measure how a model judges pairs whose pictures were changed on the way, and texts by what disproves them.

    asap newsroom out/unseen --pairs 12000 --seed 103 --splits 0 0 1
    python bench/robustness.py out/unseen [--model demo] [--json PATH] [--markdown]

The first table has a row for each change of the pictures. "False positives" are authentic pairs that the thresholds of
the model flag although nothing was done to them but the change; "times clean" is their rate divided by that of the
unchanged pictures, with a bootstrap over news items. These figures judge every pair, as if the model had no
familiarity. The last columns are those with it: pairs that are not judged, and flagged pairs as a share of the judged
authentic ones. "Only faces" are pairs whose face alone is manipulated, "only texts" those whose text alone is.

The second table has the pairs whose text alone is manipulated, by type and by what disproves the text: the text itself,
or only the picture (the field `disproved_by` of newsroom). Intervals have 95 % confidence: Wilson's for shares.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from asap.evaluation.news_items import item_keys, news_items
from asap.evaluation.reliability import wilson_interval
from asap.finding import Finding, Pair
from asap.labels import FLAGGED
from asap.predictor import Predictor
from asap.preprocessing.changes import Change, blur, brighten, flatten, gray, recompress, shrink
from asap.weights.model_folder import load_folder

CHANGES: dict[str, Change] = {
    "none": lambda picture: picture,
    "blur of 1 px": partial(blur, radius=1),
    "blur of 2 px": partial(blur, radius=2),
    "a quarter of the size": partial(shrink, times=4),
    "gray": gray,
    "1.3 times as bright": partial(brighten, times=1.3),
    "0.7 times as bright": partial(brighten, times=0.7),
    "0.7 times the contrast": partial(flatten, times=0.7),
    "JPEG 30": partial(recompress, quality=30),
}
"""The changes. Training with `augmentation=web` shows changes of these kinds, at random strengths."""
_CHUNK = 512
_RESAMPLES = 2000


def predict(predictor: Predictor, corpus: Path, records: Sequence[dict[str, Any]], change: Change) -> list[Finding]:
    """Return the finding of each pair with its changed picture."""
    findings: list[Finding] = []
    for start in range(0, len(records), _CHUNK):
        pairs = []
        for record in records[start : start + _CHUNK]:
            with Image.open(corpus / record["image"]) as image:
                pairs.append(Pair(change(image.convert("RGB")), record["text"]))
        findings += predictor.predict(pairs)
    return findings


def times_clean(flagged: np.ndarray, clean: np.ndarray, items: np.ndarray) -> list[float]:
    """Return the ratio of two rates of the same pairs, and its interval by a bootstrap over news items."""
    own = [np.bincount(items, weights) for weights in (flagged, clean)]
    draws = np.random.default_rng(0).multinomial(len(own[0]), np.full(len(own[0]), 1 / len(own[0])), _RESAMPLES)
    changed, unchanged = (draws @ counts for counts in own)
    ratios = changed[unchanged > 0] / unchanged[unchanged > 0]
    return [float(flagged.sum() / clean.sum()), *np.percentile(ratios, (2.5, 97.5)).tolist()]


def overlap(box: Sequence[float] | None, true: Sequence[float]) -> float:
    """Return the IoU of two boxes, 0 without a box."""
    if box is None:
        return 0.0
    width = min(box[2], true[2]) - max(box[0], true[0])
    height = min(box[3], true[3]) - max(box[1], true[1])
    both = max(0.0, width) * max(0.0, height)
    areas = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (box, true))
    return both / (areas - both)


def rows_of_changes(
    predictor: Predictor, corpus: Path, records: Sequence[dict[str, Any]], threshold: float
) -> list[dict[str, Any]]:
    """Return the figures of each change.

    Args:
        predictor: judges every pair, also the unfamiliar.
        corpus: the folder of the pictures.
        records: the pairs.
        threshold: the familiarity below which a pair counts as unfamiliar.
    """
    classes = np.array([record["fake_cls"] for record in records])
    true = classes == "orig"
    faces, texts = np.isin(classes, ("face_swap", "face_attribute")), np.isin(classes, ("text_swap", "text_attribute"))
    boxed = [number for number, record in enumerate(records) if record["fake_image_box"]]
    keys = item_keys([(record["image"], str(record["id"])) for record in records])
    _, items = np.unique(news_items(keys)[true], return_inverse=True)
    rows: list[dict[str, Any]] = []
    clean = np.zeros(0)
    for name, change in CHANGES.items():
        findings = predict(predictor, corpus, records, change)
        flagged = np.array([one.verdict in FLAGGED for one in findings])
        known = np.array([one.familiarity is None or one.familiarity >= threshold for one in findings])
        clean = clean if rows else flagged[true]
        hits, count = int(flagged[true].sum()), int(true.sum())
        judged = true & known
        rows.append({
            "change": name, "authentic": count, "false_positives": hits / count,
            "interval": wilson_interval(hits, count),
            "times_clean": times_clean(flagged[true], clean, items) if clean.any() else None,
            "faces_flagged": float(flagged[faces].mean()), "texts_flagged": float(flagged[texts].mean()),
            "AUC": float(roc_auc_score(~true, [one.score for one in findings])),
            "IoU50": float(np.mean([
                overlap(findings[number].box_px, records[number]["fake_image_box"]) >= 0.5 for number in boxed
            ])),
            "unfamiliar": float(1 - known.mean()), "judged": int(judged.sum()),
            "false_positives_of_judged": float(flagged[judged].mean()) if judged.any() else None,
        })  # fmt: skip
    return rows


def rows_of_texts(predictor: Predictor, corpus: Path, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return how many pairs are flagged whose text alone is manipulated, by type and by what disproves it."""
    alone = [record for record in records if record["fake_cls"] in ("text_swap", "text_attribute")]
    findings = predict(predictor, corpus, alone, CHANGES["none"])
    rows = []
    for kind in ("text_swap", "text_attribute"):
        for evidence in ("text", "picture"):
            flagged = [
                one.verdict in FLAGGED
                for one, record in zip(findings, alone, strict=True)
                if (record["fake_cls"], record["disproved_by"]) == (kind, evidence)
            ]
            share = {"flagged": float(np.mean(flagged)), "interval": wilson_interval(sum(flagged), len(flagged))}
            rows.append({"type": kind, "disproved_by": evidence, "pairs": len(flagged)} | share)
    return rows


def share(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Return a share in percent, with its interval if there is one."""
    text = "" if value is None else f"{100 * value:.1f}"
    return text if interval is None else f"{text} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def tables(changes: list[dict[str, Any]], texts: list[dict[str, Any]]) -> list[list[list[str]]]:
    """Return both tables as rows of cells, the first row being the head."""
    head = ["picture", "false positives, %", "times clean", "only faces flagged, %", "only texts flagged, %", "AUC",
            "IoU50", "unfamiliar, %", "false positives of the judged, %"]  # fmt: skip
    first = [head]
    for row in changes:
        times = row["times_clean"]
        first.append([
            row["change"], share(row["false_positives"], row["interval"]),
            "" if times is None else "{:.2f} ({:.2f} to {:.2f})".format(*times), share(row["faces_flagged"]),
            share(row["texts_flagged"]), f"{row['AUC']:.3f}", f"{row['IoU50']:.3f}", share(row["unfamiliar"]),
            share(row["false_positives_of_judged"]),
        ])  # fmt: skip
    second = [["only the text is manipulated", "disproved by", "pairs", "flagged, %"]]
    for row in texts:
        cells = [row["type"], f"the {row['disproved_by']}", f"{row['pairs']:,}", share(row["flagged"], row["interval"])]
        second.append(cells)
    return [first, second]


def main() -> None:
    """Predict, print both tables, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="A newsroom corpus with a test split that the model has not seen.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pairs", type=int, help="Evaluate only the first so many pairs. Default: all.")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    parser.add_argument("--markdown", action="store_true", help="Print the tables as Markdown.")
    options = parser.parse_args()
    loaded = load_folder(options.model)
    judging = Predictor(loaded, policy=replace(loaded.policy, unfamiliar=0.0), batch_size=64)
    records = json.loads((options.corpus / "metadata/test.json").read_text("utf-8"))[: options.pairs]
    changes = rows_of_changes(judging, options.corpus, records, loaded.policy.unfamiliar)
    texts = rows_of_texts(judging, options.corpus, records)
    for rows in tables(changes, texts):
        if options.markdown:
            head, *body = (f"| {' | '.join(cells)} |" for cells in rows)
            print(head, "|---" * len(rows[0]) + "|", *body, "", sep="\n")
        else:
            table = Table(*rows[0])
            for cells in rows[1:]:
                table.add_row(*cells)
            Console(width=140).print(table)
    if options.json:
        corpus = json.loads((options.corpus / "newsroom.json").read_text("utf-8"))
        about = {"model": loaded.model_id, "corpus": corpus["corpus_version"], "seed": corpus["seed"]}
        options.json.write_text(json.dumps(about | {"changes": changes, "texts": texts}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

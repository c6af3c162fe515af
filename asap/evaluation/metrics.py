"""The DGM4 evaluation: real or fake, types, box and words, mergeable over workers.

The metrics are those of Shao et al. (CVPR 2023), with manipulated as the positive class. Two definitions are more exact
than in the published code; on scores without ties they are equal to it:

- Average precision treats pairs of equal score together. The published code takes them in the order of a sort.
- The equal error rate is the point where the ROC polyline crosses false positives = false negatives. The published code
  solves for it on an interpolation that is ambiguous on vertical pieces.

A figure that is undefined on a corpus is None, never NaN: an AUC without both classes, the recall of a type that does
not occur, the IoU without a box. The precision of a type that was never predicted is 0, as published. Means over types
(mAP, CP, CR) are over the types that occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, roc_curve
from torch import Tensor

from asap.errors import AsapError
from asap.evaluation.news_items import item_keys
from asap.labels import AUTHENTIC, IMAGE_TYPES, TEXT_TYPES, TYPES
from asap.model.asap import AsapOutput

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]
Names = NDArray[np.object_]
Report = dict[str, Any]

_NO_BOX_BELOW = 1e-4
"""A predicted box whose xyxy coordinates are all below this means that there is no box (published rule)."""


class Predictions(NamedTuple):
    """Predictions and targets of B pairs, in the order in which they were evaluated."""

    margin: Floats
    """(B,): logit of manipulated minus logit of authentic."""
    multilabel: Floats
    """(B, 4): logits of `asap.labels.TYPES`."""
    types: Flags
    """(B, 4): the true types."""
    box: Floats
    """(B, 4) cxcywh in [0, 1]; predicted for every pair, whatever its types."""
    box_true: Floats
    """(B, 4); zeros where there is no box."""
    tokens: Counts
    """(B, 4): the counts of `token_metrics` for each pair."""
    tokens_published: Counts
    """(B, 4): the same counts against the published labels; zeros if these were not passed."""
    text_types_elsewhere: Floats
    """(B, 2): logits of the text types beside the picture of another pair; NaN if these were not passed."""
    fake_cls: Names
    """(B,): the class by its name in the corpus."""
    familiarity: NDArray[np.float64]
    """(B,): familiarity of the pair; NaN if the model has no familiarity file."""
    items: NDArray[np.uint64]
    """(B, 2): keys of the picture and of the id, see `item_keys`. Zeros if these were not passed: the pair is then
    a news item of its own. `asap.evaluation.intervals` draws pairs by these."""

    @property
    def token_counts(self) -> dict[str, Counts]:
        """The counts of `token_metrics` of each pair, by the suffix of their figures.

        `_manipulated` counts only the pairs with a manipulated text; the others have zeros.
        """
        alone = self.tokens * _any(self.types[:, len(IMAGE_TYPES) :])[:, None]
        return {"": self.tokens, "_published": self.tokens_published, "_manipulated": alone}

    @property
    def manipulated(self) -> Flags:
        """(B,): True if any type is true."""
        return _any(self.types)

    @property
    def has_box(self) -> Flags:
        """(B,): True if an image type is true."""
        return _any(self.types[:, : len(IMAGE_TYPES)])

    @property
    def flags_a_face(self) -> Flags:
        """(B,): True if an image type is predicted, at logit 0."""
        return _any(self.multilabel[:, : len(IMAGE_TYPES)] >= 0)

    @property
    def overlap(self) -> Floats:
        """(B,): the IoU of predicted and true box; see `box_overlap`."""
        return box_overlap(self.box, self.box_true, self.has_box)

    @property
    def overlap_gated(self) -> Floats:
        """(B,): the same, with no box predicted for pairs without a predicted image type."""
        return box_overlap(np.where(self.flags_a_face[:, None], self.box, 0), self.box_true, self.has_box)


class Evaluation:
    """Predictions and targets of the pairs added so far, about 160 bytes a pair.

    `merge` is exact: any split of a corpus over workers gives the figures of the whole. It can be pickled.
    """

    def __init__(self) -> None:
        self._batches: list[Predictions] = []

    def __len__(self) -> int:
        """Return the number of pairs."""
        return sum(len(batch.margin) for batch in self._batches)

    def update(
        self,
        output: AsapOutput,
        types_B4: Tensor,
        box_cxcywh_B4: Tensor,
        token_labels_BL: Tensor,
        published_labels_BL: Tensor | None = None,
        text_types_elsewhere_B2: Tensor | None = None,
        fake_cls: Sequence[str] | None = None,
        familiarity_B: Sequence[float] | None = None,
        items: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            output: the model's output for B pairs.
            types_B4: the true types, multi-hot. They also define whether a pair is manipulated and has a box.
            box_cxcywh_B4: the true boxes in [0, 1].
            token_labels_BL: token labels aligned with `output.logits_token`, -100 for padding and for the tokens of a
                text whose manipulated words are unknown. Such texts take no part in the figures of words.
            published_labels_BL: the same, as `TextCodec.label_as_published` makes them. Without them there are no
                figures of the published alignment.
            text_types_elsewhere_B2: logits of the text types for each text beside the picture of another pair. Without
                them there is no figure for the contribution of the picture (`AP_elsewhere`).
            fake_cls: the class of each pair by its name in the corpus; by default, its name in DGM4.
            familiarity_B: the familiarity of each pair. Without it there is no coverage.
            items: the address of the picture and the id of each pair. Pairs that share one of them are of one news
                item. Without them every pair is an item of its own.

        Raises `AsapError` if the model predicts NaN or infinity for a pair, with its id, and `ValueError` if labels and
        logits differ in shape.
        """
        logits = [_array(part) for part in output]
        if output.logits_token.shape[:2] != token_labels_BL.shape:
            shape, wanted = tuple(token_labels_BL.shape), tuple(output.logits_token.shape[:2])
            raise ValueError(f"token_labels have shape {shape}, logits_token are for {wanted}. Pad both alike.")
        real_fake_B2, multilabel_B4, box_B4, token_BL2 = logits
        labels_BL = token_labels_BL.cpu().numpy()
        # Padding has any logits; those of real tokens are compared with each other, so they must be numbers too.
        tokens_BL2 = np.where(labels_BL[..., None] >= 0, token_BL2, 0)
        parts = (*logits[:3], tokens_BL2)
        finite = [np.isfinite(part).all(axis=tuple(range(1, part.ndim))) for part in parts]
        if not (finite_B := np.all(finite, axis=0)).all():
            row = int(np.argmin(finite_B))
            name = f"record {items[row][1]}" if items is not None else f"pair {len(self) + row} of the evaluation"
            raise AsapError(
                f"the model predicts NaN or infinity for {name}, which cannot be ranked. Check its weights."
            )
        published_BL = (
            np.full_like(labels_BL, -100) if published_labels_BL is None else published_labels_BL.cpu().numpy()
        )
        types_flags_B4 = _array(types_B4) > 0.5
        if fake_cls is None:  # a class of DGM4 is named by its types
            fake_cls = [
                "&".join(name for name, is_true in zip(TYPES, row, strict=True) if is_true) or AUTHENTIC
                for row in types_flags_B4
            ]
        self._batches.append(
            Predictions(
                margin=real_fake_B2[:, 1] - real_fake_B2[:, 0],
                multilabel=multilabel_B4,
                types=types_flags_B4,
                box=box_B4,
                box_true=_array(box_cxcywh_B4),
                tokens=_token_counts(token_BL2, labels_BL),
                tokens_published=_token_counts(token_BL2, published_BL),
                text_types_elsewhere=(
                    np.full((len(labels_BL), len(TEXT_TYPES)), np.nan, np.float32)
                    if text_types_elsewhere_B2 is None
                    else _array(text_types_elsewhere_B2)
                ),
                fake_cls=np.array(list(fake_cls), object),
                familiarity=np.full(len(labels_BL), np.nan) if familiarity_B is None else np.array(familiarity_B),
                items=np.zeros((len(labels_BL), 2), np.uint64) if items is None else item_keys(items),
            )
        )

    def merge(self, other: Self) -> None:
        """Add the pairs of another worker's evaluation."""
        self._batches.extend(other._batches)

    def predictions(self) -> Predictions:
        """Concatenate all batches. Raises `ValueError` if there is none."""
        return Predictions(*(np.concatenate(column) for column in zip(*self._batches, strict=True)))

    def compute(self) -> Report:
        """Return all figures, ready for JSON; `by_class` holds some of them for each `fake_cls` that occurs."""
        if not len(self):
            return {"pairs": 0}
        predictions = self.predictions()
        overlap, gated = predictions.overlap, predictions.overlap_gated
        return {
            "pairs": len(predictions.margin),
            "word_labeled_pairs": int(np.count_nonzero(predictions.tokens[:, 0])),
            **real_fake_metrics(predictions.margin, predictions.manipulated),
            **type_metrics(predictions.multilabel, predictions.types),
            "AP_elsewhere": _precision_elsewhere(
                predictions.text_types_elsewhere, predictions.types[:, len(IMAGE_TYPES) :]
            ),
            **box_metrics(overlap),
            **box_metrics(gated, "_gated"),
            **box_metrics(overlap[predictions.has_box], "_boxed"),
            **{
                name: value
                for suffix, counts_B4 in predictions.token_counts.items()
                for name, value in token_metrics(counts_B4.sum(axis=0), suffix).items()
            },
            "by_class": _by_class(predictions, overlap, gated),
        }


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().float().cpu().numpy()
    return array


def _any(flags: Flags) -> Flags:
    """Return, for each row, True if any of its flags is set."""
    return np.asarray(flags.any(axis=1))


def coverage_metrics(predictions: Predictions, unfamiliar: float) -> Report:
    """Return the share of the pairs that a policy judges, and the figures of real or fake on them.

    All are None if the model has no familiarity file.

    Args:
        predictions: the predictions of all pairs.
        unfamiliar: the threshold of the policy; a pair with less familiarity is not judged.
    """
    if np.isnan(predictions.familiarity).any():
        return dict.fromkeys(("coverage", "AUC_covered", "ACC_covered"))
    covered = predictions.familiarity >= unfamiliar
    figures = real_fake_metrics(predictions.margin[covered], predictions.manipulated[covered])
    return {"coverage": float(covered.mean()), "AUC_covered": figures["AUC"], "ACC_covered": figures["ACC"]}


def real_fake_metrics(margin_B: Floats, manipulated_B: Flags) -> Report:
    """Return AUC, ACC and EER (equal error rate). `margin` is the logit of manipulated minus that of authentic."""
    report: Report = {"AUC": None, "ACC": _ratio(np.sum((margin_B > 0) == manipulated_B), len(margin_B)), "EER": None}
    if manipulated_B.any() and not manipulated_B.all():
        false_positives, true_positives, _ = roc_curve(manipulated_B, margin_B)
        report["AUC"] = float(auc(false_positives, true_positives))
        report["EER"] = _equal_error_rate(false_positives, true_positives)
    return report


def _equal_error_rate(false_positives: NDArray[np.float64], true_positives: NDArray[np.float64]) -> float:
    """Return the rate at which the ROC polyline has as many false positives as false negatives."""
    excess = false_positives - (1 - true_positives)  # rises from -1 to 1
    after = int(np.argmax(excess >= 0))
    # Interpolate on the segment that crosses 0.
    fraction = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(false_positives[after - 1] + fraction * (false_positives[after] - false_positives[after - 1]))


def type_metrics(logits_B4: Floats, types_B4: Flags) -> Report:
    """Return the AP of each type, mAP, and precision, recall and F1 of the types predicted at logit 0.

    The prefix O stands for all predictions together, C for means over the types; CF1 is the F1 of those means. `top3`
    holds the same figures when only the three highest logits of each pair may predict a type.
    """
    precisions = [_average_precision(logits_B4[:, i], types_B4[:, i]) for i in range(len(TYPES))]
    defined = [value for value in precisions if value is not None]
    # The rank of each logit in its pair, from 0; the stable sort breaks ties by the order of the types.
    top3 = np.argsort(np.argsort(-logits_B4, axis=1, kind="stable"), axis=1) < 3
    return {
        "mAP": _ratio(sum(defined), len(defined)),
        "AP": precisions,
        **_precision_and_recall(logits_B4 >= 0, types_B4),
        "top3": _precision_and_recall((logits_B4 >= 0) & top3, types_B4),
    }


def _precision_elsewhere(logits_B2: Floats, types_B2: Flags) -> list[float | None] | None:
    """Return the AP of the text types for texts beside the picture of another pair; None without such texts.

    `AP` minus this value is the contribution of the picture. A model that ignores the picture has the same value for
    both.
    """
    evaluated = np.isfinite(logits_B2).all(axis=1)
    if not evaluated.any():
        return None
    return [_average_precision(logits_B2[evaluated, i], types_B2[evaluated, i]) for i in range(len(TEXT_TYPES))]


def _average_precision(logits_B: Floats, actual_B: Flags) -> float | None:
    return float(average_precision_score(actual_B, logits_B)) if actual_B.any() else None


def _precision_and_recall(predicted_B4: Flags, types_B4: Flags) -> Report:
    right, predicted, actual = (flags.sum(axis=0) for flags in (predicted_B4 & types_B4, predicted_B4, types_B4))
    occurs = actual > 0
    # A type that was never predicted has precision 0, as published.
    CP = _ratio(np.sum((right / np.maximum(predicted, 1))[occurs]), occurs.sum())
    CR = _ratio(np.sum(right[occurs] / actual[occurs]), occurs.sum())
    OP, OR, OF1 = _precision_recall_f1(int(right.sum()), int(predicted.sum()), int(actual.sum()))
    return {"OP": OP, "OR": OR, "OF1": OF1, "CP": CP, "CR": CR, "CF1": _f1(CP, CR)}


def box_overlap(box_B4: Floats, true_B4: Floats, has_box_B: Flags) -> Floats:
    """Return the IoU, (B,), of cxcywh boxes.

    Without a true box it is 1 if the prediction means that there is no box (`_NO_BOX_BELOW`), else 0.
    """
    low, high = _corners(box_B4)
    true_low, true_high = _corners(true_B4)
    inside = np.clip(np.minimum(high, true_high) - np.maximum(low, true_low), 0, None).prod(axis=1)
    union = (high - low).prod(axis=1) + (true_high - true_low).prod(axis=1) - inside
    overlap = np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
    says_none = (np.concatenate([low, high], axis=1) < _NO_BOX_BELOW).all(axis=1)
    return np.where(has_box_B, overlap, says_none)


def _corners(box_B4: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    center, size = box_B4[:, :2].astype(np.float64), box_B4[:, 2:].astype(np.float64)
    return center - size / 2, center + size / 2


def box_metrics(overlap_B: Floats, suffix: str = "") -> Report:
    """Return the mean IoU and the share of pairs with an IoU above 0.5, 0.75 and 0.95.

    46 % of DGM4 has no box, so a model that always predicts one cannot exceed 0.54. There are therefore two variants of
    the published figures: `_gated` (the box counts only if an image type is predicted) and `_boxed` (only pairs with a
    box).
    """
    report: Report = {f"IoU_mean{suffix}": _ratio(overlap_B.sum(), len(overlap_B))}
    for percent in (50, 75, 95):
        report[f"IoU{percent}{suffix}"] = _ratio(int(np.sum(overlap_B > percent / 100)), len(overlap_B))
    return report


def _token_counts(logits_BL2: Floats, labels_BL: NDArray[np.int64]) -> Counts:
    """Count, for each pair, tokens: all, labeled manipulated, predicted manipulated, and both; (B, 4)."""
    counted = labels_BL >= 0
    actual, predicted = labels_BL == 1, counted & (logits_BL2[..., 1] > logits_BL2[..., 0])
    return np.stack([flags.sum(axis=1) for flags in (counted, actual, predicted, actual & predicted)], axis=1)


def token_metrics(counts_4: Counts, suffix: str = "") -> Report:
    """Return accuracy, precision, recall and F1 over unpadded tokens.

    All tokens of all pairs are counted together (micro average), as published. Authentic texts have no manipulated
    token: they add nothing to the recall, and each of their tokens that is predicted manipulated lowers the precision,
    and so the F1. Figures with `_manipulated` are over the pairs with a manipulated text alone.

    `counts` are the numbers of tokens: all, labeled manipulated, predicted manipulated, and correctly predicted
    manipulated. Figures without suffix use the labels of the annotated words. Those with `_published` use the published
    alignment, whose labels drift (see `asap.preprocessing.text.TextCodec.label_as_published`).
    """
    tokens, actual, predicted, right = map(int, counts_4)
    precision, recall, f1 = _precision_recall_f1(right, predicted, actual)
    accuracy = _ratio(tokens - actual - predicted + 2 * right, tokens)
    figures = {"ACC": accuracy, "precision": precision, "recall": recall, "F1": f1}
    return {f"token_{name}{suffix}": value for name, value in figures.items()}


def _by_class(predictions: Predictions, overlap: Floats, gated: Floats) -> dict[str, Report]:
    """Return, for each class: pairs, AUC against the authentic pairs, ACC, boxes and tokens."""
    # Sort the classes by the number of their types, then by these and the name: independent of the pairs' order.
    names, firsts = np.unique(predictions.fake_cls, return_index=True)
    types = [np.flatnonzero(predictions.types[first]).tolist() for first in firsts]
    classes = sorted((len(own), own, str(name)) for own, name in zip(types, names, strict=True))
    margin, authentic = predictions.margin, ~predictions.manipulated
    report = {}
    for *_, fake_cls in classes:
        members = predictions.fake_cls == fake_cls
        against = members | authentic
        report[fake_cls] = {
            "pairs": int(members.sum()),
            "AUC": real_fake_metrics(margin[against], ~authentic[against])["AUC"],
            "ACC": _ratio(np.sum((margin[members] > 0) != authentic[members]), members.sum()),
            **box_metrics(overlap[members]),
            **box_metrics(gated[members], "_gated"),
            **token_metrics(predictions.tokens[members].sum(axis=0)),
        }
    return report


def _precision_recall_f1(right: int, predicted: int, actual: int) -> tuple[float | None, float | None, float | None]:
    """Return precision, recall and F1 of counts.

    With nothing to find, recall and F1 are None; precision is then 0 with predictions, and None without.
    """
    if not actual:
        return (0.0 if predicted else None), None, None
    precision, recall = right / max(predicted, 1), right / actual
    return precision, recall, _f1(precision, recall)


def _f1(precision: float | None, recall: float | None) -> float | None:
    if precision is None or recall is None:
        return None
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _ratio(part: float | np.number, whole: int | np.integer) -> float | None:
    return float(part / whole) if whole else None

"""The DGM4 evaluation: is it manipulated, how, where in the image, where in the text.

As published (Shao et al., CVPR 2023), manipulated being the positive class, with two sounder definitions where the
published code leaves room, both equal to it on scores without ties: average precision takes pairs of equal score
together (the published one in the order that a sort left them), and the equal error rate is the point where the
ROC polyline crosses false positives = false negatives (the published one solves for it on an interpolation that is
ambiguous on vertical pieces).

What a corpus cannot tell is None, never NaN: an AUC without both classes, the recall of what does not occur, the
IoU without a box. The precision of what was never predicted is 0, as published. Means over types (mAP, CP, CR) are
over the types that occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, roc_curve
from torch import Tensor

from asap.errors import AsapError
from asap.labels import AUTHENTIC, IMAGE_TYPES, TEXT_TYPES, TYPES
from asap.model.asap import AsapOutput

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]
Names = NDArray[np.object_]
Report = dict[str, Any]

_NO_BOX_BELOW = 1e-4
"""A predicted box whose every xyxy coordinate is below this says that there is none (published rule)."""


class Predictions(NamedTuple):
    """What is kept of B pairs: predictions and targets, in the order in which they were seen."""

    margin: Floats
    """(B,): logit of manipulated minus logit of authentic."""
    multilabel: Floats
    """(B, 4): logits of `asap.labels.TYPES`."""
    types: Flags
    """(B, 4): the true types."""
    box: Floats
    """(B, 4) cxcywh in [0, 1], predicted whatever the types say."""
    box_true: Floats
    """(B, 4); zeros where there is none."""
    tokens: Counts
    """(B, 4): see `token_metrics`."""
    tokens_published: Counts
    """(B, 4): likewise, against the published labels; zeros where these were not given."""
    text_types_elsewhere: Floats
    """(B, 2): logits of the text types beside the picture of another pair; NaN where these were not given."""
    fake_cls: Names
    """(B,): the class, as the corpus calls it."""

    @property
    def manipulated(self) -> Flags:
        """(B,): whether any type is true."""
        return _any(self.types)

    @property
    def has_box(self) -> Flags:
        """(B,): whether an image type is true."""
        return _any(self.types[:, : len(IMAGE_TYPES)])

    @property
    def flags_a_face(self) -> Flags:
        """(B,): whether an image type is predicted, at logit 0."""
        return _any(self.multilabel[:, : len(IMAGE_TYPES)] >= 0)

    @property
    def overlap(self) -> Floats:
        """(B,): see `box_overlap`."""
        return box_overlap(self.box, self.box_true, self.has_box)

    @property
    def overlap_gated(self) -> Floats:
        """(B,): likewise, the box being taken back where no image type is predicted."""
        return box_overlap(np.where(self.flags_a_face[:, None], self.box, 0), self.box_true, self.has_box)


class Evaluation:
    """Predictions and targets of the pairs seen so far, about 140 bytes a pair.

    `merge` is exact: any split of a corpus over workers gives the figures of the whole. Pickles as it is.
    """

    def __init__(self) -> None:
        self._batches: list[Predictions] = []

    def __len__(self) -> int:
        """Pairs seen."""
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
    ) -> None:
        """Add a batch.

        `types`: multi-hot, (B, 4); it also says whether a pair is manipulated and has a box.
        `box_cxcywh`: (B, 4) in [0, 1]. `token_labels`: (B, L) in step with `output.logits_token`, -100 for padding.
        `published_labels`: likewise, as `TextCodec.label_as_published` gives them; without them there are no figures
        of the published alignment. `text_types_elsewhere`: logits of the text types, (B, 2), of each text beside the
        picture of another pair; without them nothing is told of how much of a text's verdict is the picture's.
        `fake_cls`: what the corpus calls each pair's class; without it, what DGM4 calls pairs of these types.
        """
        logits = [_array(part) for part in output]
        if not all(np.isfinite(part).all() for part in logits[:3]):
            raise AsapError("the model predicts NaN or infinity, which has no rank; look at the training loss")
        if output.logits_token.shape[:2] != token_labels_BL.shape:
            shape, wanted = tuple(token_labels_BL.shape), tuple(output.logits_token.shape[:2])
            raise ValueError(f"token_labels are {shape}, logits_token are for {wanted}; pad both alike")
        real_fake_B2, multilabel_B4, box_B4, token_BL2 = logits
        labels_BL = token_labels_BL.cpu().numpy()
        published_BL = (
            np.full_like(labels_BL, -100) if published_labels_BL is None else published_labels_BL.cpu().numpy()
        )
        types_flags_B4 = _array(types_B4) > 0.5
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
                fake_cls=np.array(_names_in_dgm4(types_flags_B4) if fake_cls is None else list(fake_cls), object),
            )
        )

    def merge(self, other: Self) -> None:
        """Add what another worker saw."""
        self._batches.extend(other._batches)

    def predictions(self) -> Predictions:
        """All pairs as one. Raises `ValueError` if there is none."""
        return Predictions(*(np.concatenate(column) for column in zip(*self._batches, strict=True)))

    def compute(self) -> Report:
        """All figures, JSON-ready; `by_class` holds a few of them for each `fake_cls` that occurs."""
        if not len(self):
            return {"pairs": 0}
        predictions = self.predictions()
        overlap, gated = predictions.overlap, predictions.overlap_gated
        return {
            "pairs": len(predictions.margin),
            **real_fake_metrics(predictions.margin, predictions.manipulated),
            **type_metrics(predictions.multilabel, predictions.types),
            "AP_elsewhere": _elsewhere(predictions.text_types_elsewhere, predictions.types[:, len(IMAGE_TYPES) :]),
            **box_metrics(overlap),
            **box_metrics(gated, "_gated"),
            **box_metrics(overlap[predictions.has_box], "_boxed"),
            **token_metrics(predictions.tokens.sum(axis=0)),
            **token_metrics(predictions.tokens_published.sum(axis=0), "_published"),
            "by_class": _by_class(predictions, overlap, gated),
        }


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().float().cpu().numpy()
    return array


def _any(flags: Flags) -> Flags:
    """Whether any flag of a row is set."""
    return np.asarray(flags.any(axis=1))


def _names_in_dgm4(types_B4: Flags) -> list[str]:
    return ["&".join(name for name, there in zip(TYPES, row, strict=True) if there) or AUTHENTIC for row in types_B4]


def real_fake_metrics(margin_B: Floats, manipulated_B: Flags) -> Report:
    """AUC, ACC and EER. `margin`: logit of manipulated minus logit of authentic."""
    report: Report = {"AUC": None, "ACC": _ratio(np.sum((margin_B > 0) == manipulated_B), len(margin_B)), "EER": None}
    if manipulated_B.any() and not manipulated_B.all():
        false_positives, true_positives, _ = roc_curve(manipulated_B, margin_B)
        report["AUC"] = float(auc(false_positives, true_positives))
        report["EER"] = _equal_error_rate(false_positives, true_positives)
    return report


def _equal_error_rate(false_positives: NDArray[np.float64], true_positives: NDArray[np.float64]) -> float:
    """Where the ROC polyline has as many false positives as false negatives, both as rates."""
    excess = false_positives - (1 - true_positives)  # rises from -1 to 1
    after = int(np.argmax(excess >= 0))
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(false_positives[after - 1] + share * (false_positives[after] - false_positives[after - 1]))


def type_metrics(logits_B4: Floats, types_B4: Flags) -> Report:
    """AP of each type, mAP, and precision, recall and F1 of the types predicted at logit 0.

    O: all predictions together. C: means over the types; CF1 is the F1 of those means. `top3`: likewise, of the
    three highest logits of each pair only.
    """
    precisions = [_average_precision(logits_B4[:, i], types_B4[:, i]) for i in range(len(TYPES))]
    known = [value for value in precisions if value is not None]
    top3 = np.argsort(np.argsort(-logits_B4, axis=1, kind="stable"), axis=1) < 3
    return {
        "mAP": _ratio(sum(known), len(known)),
        "AP": precisions,
        **_precision_and_recall(logits_B4 >= 0, types_B4),
        "top3": _precision_and_recall((logits_B4 >= 0) & top3, types_B4),
    }


def _elsewhere(logits_B2: Floats, types_B2: Flags) -> list[float | None] | None:
    """AP of the text types where every text stood beside the picture of another pair; None where none did.

    What it lies below `AP` is what the picture contributes: a model that judges texts by themselves has both alike.
    """
    known = np.isfinite(logits_B2).all(axis=1)
    if not known.any():
        return None
    return [_average_precision(logits_B2[known, i], types_B2[known, i]) for i in range(len(TEXT_TYPES))]


def _average_precision(logits_B: Floats, actual_B: Flags) -> float | None:
    return float(average_precision_score(actual_B, logits_B)) if actual_B.any() else None


def _precision_and_recall(predicted_B4: Flags, types_B4: Flags) -> Report:
    right, predicted, actual = (flags.sum(axis=0) for flags in (predicted_B4 & types_B4, predicted_B4, types_B4))
    occurs = actual > 0
    share = np.maximum(predicted, 1)
    CP = _ratio(np.sum((right / share)[occurs]), occurs.sum())
    CR = _ratio(np.sum(right[occurs] / actual[occurs]), occurs.sum())
    OP, OR, OF1 = _precision_recall_f1(int(right.sum()), int(predicted.sum()), int(actual.sum()))
    return {"OP": OP, "OR": OR, "OF1": OF1, "CP": CP, "CR": CR, "CF1": _f1(CP, CR)}


def box_overlap(box_B4: Floats, true_B4: Floats, has_box_B: Flags) -> Floats:
    """IoU (B,) of cxcywh boxes; without a true box 1 if the predicted one says that there is none, else 0."""
    low, high = _corners(box_B4)
    true_low, true_high = _corners(true_B4)
    inside = np.clip(np.minimum(high, true_high) - np.maximum(low, true_low), 0, None).prod(axis=1)
    union = (high - low).prod(axis=1) + (true_high - true_low).prod(axis=1) - inside
    overlap = np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
    says_none = (np.concatenate([low, high], axis=1) < _NO_BOX_BELOW).all(axis=1)
    return np.where(has_box_B, overlap, says_none)


def _corners(box_B4: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    centre, size = box_B4[:, :2].astype(np.float64), box_B4[:, 2:].astype(np.float64)
    return centre - size / 2, centre + size / 2


def box_metrics(overlap_B: Floats, suffix: str = "") -> Report:
    """Mean IoU and the share of pairs above 0.5, 0.75 and 0.95.

    46 % of DGM4 has no box, so a model that always predicts one cannot pass 0.54. Hence beside the published figures
    those with the suffix `_gated` (the box counts only if an image type is predicted) and `_boxed` (pairs with a box).
    """
    report: Report = {f"IoU_mean{suffix}": _ratio(overlap_B.sum(), len(overlap_B))}
    for percent in (50, 75, 95):
        report[f"IoU{percent}{suffix}"] = _ratio(int(np.sum(overlap_B > percent / 100)), len(overlap_B))
    return report


def _token_counts(logits_BL2: Floats, labels_BL: NDArray[np.int64]) -> Counts:
    """(B, 4): for each pair, tokens, tokens labelled, tokens predicted, tokens rightly predicted manipulated."""
    counted = labels_BL >= 0
    actual, predicted = labels_BL == 1, counted & (logits_BL2[..., 1] > logits_BL2[..., 0])
    return np.stack([flags.sum(axis=1) for flags in (counted, actual, predicted, actual & predicted)], axis=1)


def token_metrics(counts_4: Counts, suffix: str = "") -> Report:
    """Accuracy, precision, recall and F1 over unpadded tokens. `counts`: all, manipulated, predicted, right.

    Without the suffix against the labels of the annotated words; with `_published` against those of the published
    alignment, which drift (see `asap.preprocessing.text.TextCodec.label_as_published`).
    """
    tokens, actual, predicted, right = map(int, counts_4)
    precision, recall, f1 = _precision_recall_f1(right, predicted, actual)
    accuracy = _ratio(tokens - actual - predicted + 2 * right, tokens)
    figures = {"ACC": accuracy, "precision": precision, "recall": recall, "F1": f1}
    return {f"token_{name}{suffix}": value for name, value in figures.items()}


def _by_class(predictions: Predictions, overlap: Floats, gated: Floats) -> dict[str, Report]:
    """For each class, those of fewer types first: pairs, AUC against the authentic pairs, ACC, boxes and tokens."""
    margin, authentic = predictions.margin, ~predictions.manipulated
    report = {}
    for fake_cls in _classes(predictions):
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


def _classes(predictions: Predictions) -> list[str]:
    """Those that occur, in an order that does not depend on the pairs': by the number of their types, then by these."""
    names, firsts = np.unique(predictions.fake_cls, return_index=True)
    types = [np.flatnonzero(predictions.types[first]).tolist() for first in firsts]
    return [name for *_, name in sorted((len(own), own, str(name)) for own, name in zip(types, names, strict=True))]


def _precision_recall_f1(right: int, predicted: int, actual: int) -> tuple[float | None, float | None, float | None]:
    """Of counts. Without anything to find, recall and F1 are None, and so is a precision without a prediction."""
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

"""The DGM4 evaluation."""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from asap.errors import AsapError
from asap.evaluation.metrics import (
    Evaluation,
    box_metrics,
    box_overlap,
    coverage_metrics,
    real_fake_metrics,
    token_metrics,
    type_metrics,
)
from asap.model.asap import AsapOutput
from asap.training.targets import CLASSES, multi_hot

GOLDEN = Path(__file__).parents[2] / "golden"
SPEC = json.loads((GOLDEN / "metrics_0.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def golden():
    """Return output and targets of the 500 golden pairs."""
    with np.load(GOLDEN / "metrics_0.npz") as arrays:
        held = {name: torch.from_numpy(arrays[name]) for name in arrays}
    names = ("logits_real_fake", "logits_multilabel", "box_pred_cxcywh", "logits_token")
    types = torch.stack([multi_hot(name) for name in SPEC["labels"]])
    return AsapOutput(*(held[name] for name in names)), types, held["box_true_cxcywh"], held["token_labels"]


def evaluate(output, *targets, rows=slice(None)):
    evaluation = Evaluation()
    evaluation.update(AsapOutput(*(part[rows] for part in output)), *(target[rows] for target in targets))
    return evaluation


def pairs(*classes, margin=None, tokens=2):
    """Return output and targets of one pair of each class, predicted correctly unless `margin` is passed.

    Each pair with a manipulated text has one manipulated token.
    """
    types = torch.stack([multi_hot(name) for name in classes])
    manipulated, has_box = types.any(dim=1), types[:, :2].any(dim=1)
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.4]) * has_box[:, None]
    labels = torch.zeros(len(classes), tokens, dtype=torch.int64)
    labels[:, :1] = types[:, 2:].any(dim=1, keepdim=True)
    scores = torch.where(manipulated, 1.0, -1.0) if margin is None else torch.tensor(margin)
    token_scores = labels * 2.0 - 1
    output = AsapOutput(
        torch.stack([-scores, scores], 1), types * 2 - 1, boxes.clone(), torch.stack([-token_scores, token_scores], -1)
    )
    return output, types, boxes, labels


def numbers(report):
    """Yield every leaf of a report with its path."""
    items = report.items() if isinstance(report, dict) else enumerate(report)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from ((f"{key}.{path}", leaf) for path, leaf in numbers(value))
        else:
            yield str(key), value


@pytest.mark.parametrize(("name", "published"), list(numbers(SPEC["metrics"])))
def test_every_published_metric_is_reproduced(golden, name, published):
    assert dict(numbers(evaluate(*golden).compute()))[name] == pytest.approx(published, abs=1e-6)


def test_merging_workers_gives_exactly_the_figures_of_the_whole(golden):
    whole = evaluate(*golden).compute()
    merged = Evaluation()
    for rows in (slice(0, 7), slice(7, 7), slice(7, 300), slice(300, None)):
        part = pickle.loads(pickle.dumps(evaluate(*golden, rows=rows)))  # noqa: S301
        merged.merge(part)
    assert merged.compute() == whole


def test_the_order_of_pairs_does_not_matter(golden):
    shuffled = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    whole = dict(numbers(evaluate(*golden).compute()))
    for name, value in numbers(evaluate(*golden, rows=shuffled).compute()):
        assert value == pytest.approx(whole[name], abs=1e-9), name


def test_batches_of_other_text_lengths_add_up(golden):
    output, types, boxes, labels = golden
    longer = AsapOutput(*output[:3], torch.nn.functional.pad(output.logits_token, (0, 0, 0, 5), value=9.0))
    padded = torch.nn.functional.pad(labels, (0, 5), value=-100)
    evaluation = evaluate(*golden, rows=slice(0, 250))
    evaluation.merge(evaluate(longer, types, boxes, padded, rows=slice(250, None)))
    assert evaluation.compute() == evaluate(*golden).compute()


def test_half_precision_outputs_are_read():
    output, *targets = pairs("orig", "face_swap")
    evaluation = Evaluation()
    evaluation.update(AsapOutput(*(part.bfloat16() for part in output)), *targets)
    assert evaluation.compute()["AUC"] == 1


def test_a_perfect_model_is_perfect_everywhere():
    report = evaluate(*pairs(*CLASSES)).compute()
    assert report["pairs"] == 9
    for name, value in numbers(report):
        if name.endswith("pairs") or value is None:
            continue
        assert value == (0 if name == "EER" else 1), name


def test_ties_count_half_in_auc_and_meet_in_the_middle_for_eer():
    report = real_fake_metrics(np.zeros(4, np.float32), np.array([True, False, True, False]))
    assert report["AUC"] == 0.5
    assert report["EER"] == 0.5


def test_eer_interpolates_between_the_points_of_the_curve():
    margin = np.array([1, 0, 0, 0, -1], np.float32)  # the curve crosses within the tie
    manipulated = np.array([True, True, False, True, False])
    assert real_fake_metrics(margin, manipulated)["EER"] == pytest.approx(2 / 7)
    assert real_fake_metrics(-margin, ~manipulated)["EER"] == pytest.approx(2 / 7)


def test_average_precision_does_not_depend_on_the_order_of_ties():
    logits = np.zeros((4, 4), np.float32)
    for column in ([1, 1, 0, 0], [0, 0, 1, 1]):
        types = np.array([column] * 4, bool).T
        assert type_metrics(logits, types)["AP"] == [0.5] * 4


def test_top3_leaves_out_the_lowest_of_four_flagged_types():
    logits = np.array([[1, 2, 3, 4]], np.float32)
    types = np.array([[True, False, False, True]])
    report = type_metrics(logits, types)
    assert (report["OP"], report["OR"]) == (0.5, 1)
    assert (report["top3"]["OP"], report["top3"]["OR"]) == (pytest.approx(1 / 3), 0.5)


def test_overlap_is_the_iou_of_the_boxes():
    box = np.array(
        [[0.5, 0.5, 0.4, 0.4], [0.25, 0.5, 0.5, 1.0], [0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.0, 0.0]], np.float32
    )
    true = np.array(
        [[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 1.0, 1.0], [0.9, 0.9, 0.1, 0.1], [0.5, 0.5, 0.0, 0.0]], np.float32
    )
    assert box_overlap(box, true, np.ones(4, bool)) == pytest.approx([1, 0.5, 0, 0])


def test_without_a_box_only_a_prediction_of_no_box_is_right():
    box = np.array([[0, 0, 0, 0], [5e-5, 5e-5, 5e-5, 5e-5], [1.1e-4, 0, 0, 0], [0.5, 0.5, 0.2, 0.2]], np.float32)
    assert box_overlap(box, np.zeros_like(box), np.zeros(4, bool)).tolist() == [1, 1, 0, 0]


def test_overlap_thresholds_are_exclusive_as_published():
    assert box_metrics(np.array([0.5, 0.75, 1.0]))["IoU50"] == pytest.approx(2 / 3)


def test_gated_drops_the_box_of_an_unflagged_pair_and_boxed_counts_only_boxes():
    output, types, boxes, labels = pairs("orig", "face_swap", "face_swap")
    always = AsapOutput(output[0], output[1], torch.tensor([0.5, 0.5, 0.4, 0.4]).repeat(3, 1), output[3])
    always.logits_multilabel[2] = -1  # a face that no image type flags
    report = evaluate(always, types, boxes, labels).compute()
    assert report["IoU50"] == pytest.approx(2 / 3)
    assert report["IoU50_gated"] == pytest.approx(2 / 3)
    assert report["IoU50_boxed"] == 1
    assert report["by_class"]["orig"]["IoU50"] == 0
    assert report["by_class"]["orig"]["IoU50_gated"] == 1
    assert report["by_class"]["face_swap"]["IoU50_gated"] == 0.5


def test_padding_tokens_count_for_nothing():
    output, types, boxes, labels = pairs("text_swap", "orig", tokens=3)
    labels[:, 2] = -100
    report = evaluate(output, types, boxes, labels).compute()
    assert report["token_ACC"] == 1
    labels[0, 1] = 1
    report = evaluate(output, types, boxes, labels).compute()
    assert (report["token_ACC"], report["token_precision"], report["token_recall"]) == (0.75, 1, 0.5)


def test_the_breakdown_compares_each_class_with_the_authentic_pairs():
    margin = [-1.0, -2.0, 3.0, -1.5]
    report = evaluate(*pairs("orig", "orig", "face_swap", "text_swap", margin=margin)).compute()["by_class"]
    assert set(report) == {"orig", "face_swap", "text_swap"}
    assert [report[name]["pairs"] for name in report] == [2, 1, 1]
    assert report["orig"]["AUC"] is None
    assert report["face_swap"]["AUC"] == 1
    assert report["text_swap"]["AUC"] == 0.5
    assert [report[name]["ACC"] for name in report] == [1, 1, 0]


def test_the_breakdown_uses_the_names_of_the_corpus_and_merges_exactly():
    # DGM4+ has two names for an authentic pair; SAMM has its own name for a class of two types.
    names = ("orig", "origin", "text_swap", "origin", "swap_manipulation")
    drawn = pairs("orig", "orig", "text_swap", "orig", "face_swap&text_attribute", margin=[-2.0, 1.0, 3.0, -1.0, 0.5])
    whole, merged = Evaluation(), Evaluation()
    whole.update(*drawn, fake_cls=names)
    for rows in (slice(0, 2), slice(2, None)):
        part = Evaluation()
        output, *targets = drawn
        part.update(
            AsapOutput(*(one[rows] for one in output)), *(target[rows] for target in targets), fake_cls=names[rows]
        )
        merged.merge(pickle.loads(pickle.dumps(part)))  # noqa: S301

    report = merged.compute()["by_class"]

    assert report == whole.compute()["by_class"]
    assert {name: figures["pairs"] for name, figures in report.items()} == {
        "orig": 1, "origin": 2, "text_swap": 1, "swap_manipulation": 1,
    }  # fmt: skip
    assert list(report) == ["orig", "origin", "text_swap", "swap_manipulation"]
    assert [report[name]["ACC"] for name in report] == [1, 0.5, 1, 1]
    assert report["swap_manipulation"]["AUC"] == pytest.approx(2 / 3)  # against all three authentic pairs


def test_words_are_evaluated_under_both_alignments():
    output, types, boxes, labels = pairs("text_swap", "orig", tokens=3)
    drifted = labels.roll(1, dims=1)
    evaluation = Evaluation()
    evaluation.update(output, types, boxes, labels, drifted)
    report = evaluation.compute()
    assert (report["token_F1"], report["token_F1_published"]) == (1, 0)
    assert (report["token_recall_published"], report["token_ACC_published"]) == (0, pytest.approx(4 / 6))


def test_figures_of_the_published_alignment_need_published_labels():
    report = evaluate(*pairs("text_swap", "orig")).compute()
    assert report["token_F1"] == 1
    assert [report[f"token_{name}_published"] for name in ("ACC", "precision", "recall", "F1")] == [None] * 4


def test_pairs_are_kept_in_the_order_of_evaluation():
    evaluation = evaluate(*pairs("orig", "face_swap", margin=[-1.0, 2.0]))
    evaluation.merge(evaluate(*pairs("text_swap", margin=[0.5])))
    predictions = evaluation.predictions()
    assert len(evaluation) == 3
    assert predictions.margin.tolist() == [-2, 4, 1]
    assert predictions.manipulated.tolist() == [False, True, True]
    assert predictions.has_box.tolist() == [False, True, False]
    assert predictions.flags_a_face.tolist() == [False, True, False]


def assert_no_nan(report):
    for name, value in numbers(json.loads(json.dumps(report, allow_nan=False))):
        assert value is None or math.isfinite(value), name


def test_an_empty_evaluation_has_no_figures():
    assert Evaluation().compute() == {"pairs": 0}


def test_auc_and_recalls_are_none_without_manipulated_samples():
    report = evaluate(*pairs("orig", "orig")).compute()
    assert_no_nan(report)
    assert (report["AUC"], report["EER"], report["mAP"], report["OR"], report["CF1"]) == (None,) * 5
    assert report["AP"] == [None] * 4
    assert report["ACC"] == 1
    assert report["IoU_mean"] == 1
    assert report["IoU_mean_boxed"] is None
    assert report["token_F1"] is None


def test_auc_is_none_without_authentic_samples():
    report = evaluate(*pairs("face_swap", "text_swap")).compute()
    assert_no_nan(report)
    assert (report["AUC"], report["EER"]) == (None, None)
    assert report["ACC"] == 1
    assert report["AP"] == [1, None, 1, None]
    assert report["mAP"] == 1
    assert report["CF1"] == 1


def test_token_figures_are_none_without_tokens():
    report = evaluate(*pairs("orig", "face_swap", tokens=0)).compute()
    assert_no_nan(report)
    assert [report[f"token_{name}"] for name in ("ACC", "precision", "recall", "F1")] == [None] * 4


def test_precision_without_a_prediction_is_zero_as_published():
    assert token_metrics(np.array([10, 3, 0, 0])) == {
        "token_ACC": 0.7, "token_precision": 0, "token_recall": 0, "token_F1": 0
    }  # fmt: skip
    report = type_metrics(np.full((2, 4), -1, np.float32), np.ones((2, 4), bool))
    assert (report["OP"], report["OR"], report["OF1"], report["CP"], report["CF1"]) == (0, 0, 0, 0, 0)


def test_a_false_alarm_has_precision_zero_if_there_is_nothing_to_find():
    assert token_metrics(np.array([10, 0, 2, 0]))["token_precision"] == 0


def test_a_nan_prediction_is_an_error():
    output, *targets = pairs("orig", "face_swap")
    for part in output[:3]:
        broken = AsapOutput(*(torch.full_like(one, torch.nan) if one is part else one for one in output))
        with pytest.raises(AsapError, match="NaN"):
            evaluate(broken, *targets)


def test_a_nan_prediction_names_its_record():
    output, *targets = pairs("orig", "face_swap")
    output.logits_real_fake[1] = torch.nan
    with pytest.raises(AsapError, match="NaN or infinity for record 17,"):
        Evaluation().update(output, *targets, items=[("a.jpg", "16"), ("b.jpg", "17")])
    with pytest.raises(AsapError, match="pair 1 of the evaluation"):
        evaluate(output, *targets)


def test_logits_of_padding_may_be_anything_and_those_of_words_may_not():
    output, types, boxes, labels = pairs("text_swap", "orig", tokens=3)
    output.logits_token[:, 2] = torch.nan
    labels[:, 2] = -100
    assert evaluate(output, types, boxes, labels).compute()["token_F1"] == 1
    output.logits_token[1, 1] = torch.nan
    with pytest.raises(AsapError, match="NaN"):
        evaluate(output, types, boxes, labels)


def test_tokens_of_authentic_texts_lower_the_f1_and_not_that_of_manipulated_texts():
    output, types, boxes, labels = pairs("text_swap", "orig", "face_swap", tokens=3)
    output.logits_token[1:, 0] = torch.tensor([-1.0, 1.0])  # two false alarms, in authentic texts
    report = evaluate(output, types, boxes, labels).compute()
    assert (report["token_precision"], report["token_recall"]) == (pytest.approx(1 / 3), 1)
    assert report["token_F1"] == pytest.approx(0.5)
    assert report["token_F1_manipulated"] == report["token_precision_manipulated"] == 1
    assert report["token_ACC_manipulated"] == 1
    without = evaluate(*pairs("orig", "face_swap")).compute()
    assert [without[f"token_{name}_manipulated"] for name in ("ACC", "precision", "recall", "F1")] == [None] * 4


def test_token_labels_of_another_length_are_refused():
    output, types, boxes, labels = pairs("orig", "face_swap")
    with pytest.raises(ValueError, match="token_labels"):
        evaluate(output, types, boxes, labels[:, :1])


def test_precision_beside_another_picture_is_reported_if_it_was_evaluated():
    output, types, boxes, labels = pairs("orig", "text_swap", "face_swap&text_swap", "orig")
    elsewhere = torch.tensor([[0.9, -1.0], [0.5, -1.0], [float("nan")] * 2, [-0.5, -1.0]])
    evaluation = Evaluation()
    evaluation.update(output, types, boxes, labels, None, elsewhere)
    report = evaluation.compute()
    # Among the three pairs that were evaluated, the swapped text ranks second; no pair has a text_attribute.
    assert report["AP_elsewhere"] == [0.5, None]
    assert report["AP"][2] == 1.0
    assert evaluate(output, types, boxes, labels).compute()["AP_elsewhere"] is None


def test_coverage_is_the_share_that_the_policy_judges_and_figures_are_of_these():
    output, *targets = pairs("orig", "face_swap", "orig", "text_swap", margin=[-1.0, 1.0, 1.0, -1.0])
    evaluation = Evaluation()
    evaluation.update(output, *targets, familiarity_B=[0.5, 0.005, 0.004, 0.001])
    assert coverage_metrics(evaluation.predictions(), 0.005) == {
        "coverage": 0.5,
        "AUC_covered": 1.0,
        "ACC_covered": 1.0,
    }
    assert coverage_metrics(evaluation.predictions(), 0.0)["ACC_covered"] == 0.5
    assert coverage_metrics(evaluation.predictions(), 1.0)["AUC_covered"] is None
    without = evaluate(output, *targets)
    assert without.compute() == evaluation.compute()
    assert set(coverage_metrics(without.predictions(), 0.005).values()) == {None}

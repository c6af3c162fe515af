"""The table of the papers."""

import torch

from asap.evaluation.metrics import Evaluation
from asap.evaluation.table import CLASS_COLUMNS, class_rows, intervals_sentence, percent, task_rows
from asap.model.asap import AsapOutput
from asap.training.targets import multi_hot


def report(*classes):
    types = torch.stack([multi_hot(name) for name in classes])
    labels = types[:, 2:].any(dim=1, keepdim=True).long()
    margin = types.any(dim=1).float() * 2 - 1
    tokens = labels.float()[..., None] * torch.tensor([-2.0, 2.0]) + torch.tensor([1.0, -1.0])
    evaluation = Evaluation()
    output = AsapOutput(torch.stack([-margin, margin], 1), types * 2 - 1, torch.full((len(classes), 4), 0.5), tokens)
    evaluation.update(output, types, torch.full((len(classes), 4), 0.5), labels, 1 - labels)
    return evaluation.compute()


def test_the_figures_are_those_of_the_papers_in_their_order():
    rows = task_rows(report("orig", "face_swap", "text_swap"))
    names = [name for row in rows[:3] for name, _ in row.figures] + [name for name, _ in rows[5].figures]
    assert names == [
        "AUC", "EER", "ACC", "mAP", "CF1", "OF1", "IoUmean", "IoU50", "IoU75", "precision", "recall", "F1",
    ]  # fmt: skip
    assert rows[0].figures == [("AUC", "100.00"), ("EER", "0.00"), ("ACC", "100.00")]


def test_boxes_have_three_definitions_and_words_two():
    rows = task_rows(report("orig", "face_swap", "text_swap"))
    found = {row.reading.partition(":")[0]: dict(row.figures) for row in rows}
    assert [found[reading]["IoUmean"] for reading in ("as published", "gated", "boxed")] == [
        "33.33",
        "100.00",
        "100.00",
    ]
    assert [found[reading]["F1"] for reading in ("corrected alignment", "published alignment")] == ["100.00", "0.00"]


def test_each_class_that_occurs_has_a_row():
    rows = class_rows(report("orig", "face_swap", "face_swap", "text_swap"))
    assert [row[:2] for row in rows] == [["orig", "1"], ["face_swap", "2"], ["text_swap", "1"]]
    assert all(len(row) == len(CLASS_COLUMNS) for row in rows)
    assert rows[0][2] == "–", "no AUC of authentic pairs alone"


def test_an_undefined_figure_is_a_dash():
    assert (percent(None), percent(0.0), percent(0.93195)) == ("–", "0.00", "93.19")


def test_the_contribution_of_pictures_has_two_rows_if_it_was_evaluated():
    evaluated = report("orig", "text_swap", "text_attribute")
    assert [row.task for row in task_rows(evaluated)].count("texts") == 0
    rows = task_rows(evaluated | {"AP_elsewhere": [0.5, None]})[-2:]
    assert [row.figures for row in rows] == [
        [("AP text_swap", "100.00"), ("AP text_attribute", "100.00")],
        [("AP text_swap", "50.00"), ("AP text_attribute", "–")],
    ]


def test_the_judged_pairs_have_a_row_if_the_model_has_familiarity():
    evaluated = report("orig", "face_swap")
    assert task_rows(evaluated | {"coverage": None, "AUC_covered": None, "ACC_covered": None}) == task_rows(evaluated)
    row = task_rows(evaluated | {"coverage": 0.5, "AUC_covered": None, "ACC_covered": 1.0})[1]
    assert (row.task, row.figures) == ("real/fake", [("AUC", "–"), ("coverage", "50.00"), ("ACC", "100.00")])


def test_the_sentence_on_intervals_says_if_one_news_item_allows_none():
    made = {"confidence": 0.95, "resamples": 1000, "seed": 0, "method": "percentiles", "items": 2}
    assert intervals_sentence({"intervals": made}) == "95 % intervals: percentiles; 1,000 resamples of 2 items, seed 0."
    alone = intervals_sentence({"intervals": made | {"items": 1}})
    assert alone == "There are no intervals: all pairs are of one news item."
    assert intervals_sentence({}) == ""

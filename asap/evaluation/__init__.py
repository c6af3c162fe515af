"""Evaluation: how good a model is on labeled pairs.

evaluate.py      a model on labeled pairs, in batches
metrics.py       the DGM4 evaluation, mergeable over workers
table.py         the table of the papers
reliability.py   expected calibration error, Brier score and bins
own_pairs.py     familiarity, fitted to pairs of the model's own corpus
thresholds.py    thresholds that keep a precision, with a confidence bound
"""

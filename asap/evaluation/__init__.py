"""Evaluation: how good a model is on labeled pairs.

evaluate.py      a model on labeled pairs, in batches
metrics.py       the DGM4 evaluation, mergeable over workers
news_items.py    pairs that depend on each other, and the draw of one of them
intervals.py     confidence intervals of the figures, by news item
table.py         the table of the papers
reliability.py   expected calibration error, Brier score and bins
own_pairs.py     familiarity, fitted to pairs of the model's own corpus
thresholds.py    thresholds that keep a precision, with a confidence bound
pairs_needed.py  the labeled pairs that a target needs, where those at hand do not show it
precision_test.py  an exact test that a threshold keeps a precision, and the order of many
rank_test.py     exact tests at thresholds with a fixed number of false flags
"""

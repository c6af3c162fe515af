"""Evaluation of a model on labeled pairs.

run.py         evaluate(): check, evaluate shard by shard, write the results
settings.py    EvaluateSettings
charts.py      the charts: ROC, precision and recall, IoU, reliability
verdicts.py    what the policy makes of the pairs, and the sentence about it
page.py        the page with the table, the charts and the worst pairs
"""

"""Evaluation of a model on labeled pairs.

run.py         evaluate(): check, evaluate shard by shard, write the results
settings.py    EvaluateSettings
plan.py        everything that is checked before torch and Ray are loaded
shards.py      the shards: how many run at once, what a worker computes, and how they are merged
outputs.py     the files that are written
charts.py      the charts: ROC, precision and recall, IoU, reliability
verdicts.py    what the policy makes of the pairs, and the sentence about it
page.py        the page with the table, the charts and the worst pairs
"""

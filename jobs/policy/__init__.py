"""Policies: what a model can judge, its thresholds, and other thresholds for a finished scan.

familiarize.py familiarize(): pairs of the training in, a familiarity file out
calibrate.py   calibrate(): labeled pairs in, a policy file out
scores.py      the scores of labeled pairs
on_cluster.py  score them on a machine of a cluster
repolicy.py    repolicy(): give a finished scan another policy
changes.py     what another policy changes: counts before and after, and how many rows moved
files.py       read and replace policy files
settings.py    CalibrateSettings, FamiliarizeSettings
"""

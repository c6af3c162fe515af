"""Policies: choose thresholds, and apply other thresholds to a finished scan.

calibrate.py   calibrate(): labeled pairs in, a policy file out
repolicy.py    repolicy(): give a finished scan another policy
files.py       read and replace policy files
settings.py    CalibrateSettings
"""

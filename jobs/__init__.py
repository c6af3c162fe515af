"""The jobs on Ray (scan, train, evaluate, calibrate) and the `asap` command.

cli/           the `asap` command, one file a command
scan/          scan a corpus in bulk
train/         train a model
evaluate/      evaluate a model on labeled pairs
policy/        choose thresholds, and apply other thresholds to a finished scan
pages/         self-contained HTML pages, and SVG plots
settings.py    settings that several jobs share
corpus.py      read a corpus as a job's settings say
cluster.py     run on Ray, and wait for its resources
ray_start.py   start Ray, or connect to a cluster
stall.py       notice that a running job makes no progress
errors.py      the errors of jobs
"""

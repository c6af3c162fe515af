"""Bulk scans, in the order in which a row travels.

run.py          scan(): from the command to _SUCCESS
settings.py     ScanSettings
plan.py         everything that is checked before Ray starts
look.py         a look at the input before any work, which asap plan shows
pilot.py        a sample judged without Ray, and the hours and price that follow, for asap plan --pilot
sample.py       a seeded sample of the input, which is judged first
passes.py       the passes of the pipeline over the rows, and their progress
timeline.py     the speed of a job over time
retry.py        failed rows, judged again
captioning.py   captions of rows that were judged before
file_tasks.py   work on the files of a folder by Ray tasks
trial.py        an engine of captions, tried before a job starts, here or on its cluster
steps.py        the steps that every job over a manifest takes
pipeline.py     the Ray Data pipeline, and the resources of its stages
pools.py        pools that follow a cluster, and the job's share of it
input/          from an input to a manifest
stages/         from a manifest row to a result row
output/         the job folder, and what is written from the results
"""

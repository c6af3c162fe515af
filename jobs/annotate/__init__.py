"""Captions and explanations in bulk: a training corpus or any input of a scan in, Parquet rows and JSON files out.

A job of annotations is a scan whose last stages describe instead of detect. Its manifest, passes, job folder and
retries are those of `jobs.scan`.

run.py       annotate(): from the command to _SUCCESS
settings.py  AnnotateSettings
plan.py      everything that is checked before Ray starts
corpus.py    a corpus in DGM4's layout as an input
preview.py   the counts of a job and a pilot of a few pairs: asap annotate --plan
pipeline.py  the stages, and their resources
stage.py     DescribeStage: the actor that captions pictures or explains texts
requests.py  from a row of the manifest to the request of an engine
known.py     the actor that knows which pictures and texts are described
rows.py      the schema of annotations
outputs.py   captions.json, explanations.json, annotations.json and errors.jsonl
"""

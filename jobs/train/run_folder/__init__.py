"""The folder of a training run.

folder.py  the files of a run, on a shared disk or at s3:// with a copy on each machine
record.py  run.json: code, libraries, settings, data, seeds and machines
log.py     progress.jsonl and TensorBoard: losses, speed and validation metrics
"""

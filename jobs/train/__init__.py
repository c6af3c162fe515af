"""Training: a corpus in, a model folder out.

run.py       the driver: train() and plan()
settings.py  the settings of a run
check.py     checks of the command, before torch is imported
defaults.py  defaults that follow from first weights and from the published recipe
plan.py      the plan of a run, which `asap train --plan` shows
gpus.py      kinds of GPUs, and those that are there
fit.py       micro batches and checkpointing with which a step fits into its device
pilot.py     a few passes on a device, to say how long the run takes
speed.py     the speed of a run on GPUs by name, estimated
stages.py    the loss terms that each step trains
checkpoints.py  the steps after which a checkpoint is due
events.py    the events that a run reports
start.py     the first weights and the tokenizer, from other models
watch.py     heartbeat, requests to stop and stalls of a run
worker.py    the work of one Ray Train worker, and the failures that end a run
trainer.py   state, steps and checkpoints of one worker, without Ray
export.py    the chosen checkpoint becomes the model folder
card.py      the README.md of the model folder
data/        splits, their order and their batches
run_folder/  files, record and log of a run
"""

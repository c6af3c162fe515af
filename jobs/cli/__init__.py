"""The `asap` command, one file a command.

app.py                the command line: subcommands, error messages, exit codes
__main__.py           the command line as a module, for an interpreter that is named
options.py            options that several commands share, and `--set`
display.py            progress, tables, and a finding in the terminal
fitting.py            tables that cut no number and no name, however narrow the terminal is
pairs_job.py          a scan or annotations: progress, summary, and how failed pairs end it
training_progress.py  the progress of a training run in the terminal
job_tables.py         jobs, their errors and their rows in the terminal
model_tables.py       a model's origin, figures and sizes in the terminal
annotate_tables.py    the plan and the summary of asap annotate in the terminal
input_tables.py       what a scan would read, in the terminal
ray_log.py            the log file for what Ray prints
replica_log.py        the lines of JSON that a server's processes print
requested.py          a command whose arguments strangers chose: run it, or only check it
plan.py               asap plan
scan.py               asap scan
detect.py             asap detect
annotate.py           asap annotate
newsroom.py           asap newsroom
captioner.py          asap captioner
train.py              asap train
evaluate.py           asap evaluate
model.py              asap import, asap model
policy.py             asap familiarize, asap calibrate, asap repolicy
serve.py              asap serve, asap serve build
submit.py             asap submit
control.py            asap status, list, watch, cancel, resume, errors, results, report, delete
"""

"""The jobs on Ray (scan, train, evaluate, calibrate) and the `asap` command.

cli/           the `asap` command, one file a command
scan/          scan a corpus in bulk
annotate/      write captions and explanations in bulk
train/         train a model
evaluate/      evaluate a model on labeled pairs
model/         make model folders of checkpoints, and describe them
policy/        choose thresholds, and apply other thresholds to a finished scan
submit/        run a command on a cluster from any machine, by Ray's Jobs API
control/       see, stop, query and delete jobs through their folders
descriptions/  captions and explanations by large models, or from files
pages/         self-contained HTML pages, and SVG plots
settings.py    settings that several jobs share
corpus.py      read a corpus as a job's settings say
cluster.py     run on Ray, and wait for its resources
reach.py       paths that the machines of a cluster must share
node_types.py  the machines that a cluster could start
lost_machines.py  the connections to machines that Ray has given up
packing.py     workers placed on machines
machine_use.py what each job holds on the machines
sharing.py     the share of a cluster that each of several jobs may use
ray_start.py   start Ray, or connect to a cluster
ray_address.py the forms of a cluster's addresses
ray_end.py     end Ray, whatever threads and signals do then
heartbeat.py   signs of life of a job, and requests that it stops
stall.py       notice that a running job makes no progress
states.py      the states of a job: log lines, and a notification when it ends
notify.py      deliver a notification to a command or an address
metrics.py     metrics of jobs for Prometheus
errors.py      the errors of jobs, and the exit codes
stops.py       orderly stops by signals
"""

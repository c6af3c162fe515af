"""Commands that run on a cluster: submitted from any machine by Ray's Jobs API, and followed to their end.

run.py           submit a command, follow its log, stop it
job_server.py    the Jobs API of a cluster, with errors that say what to do
shared_paths.py  local paths of a command
"""

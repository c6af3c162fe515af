"""Bulk jobs for callers of the API: scans that are submitted to the Ray cluster of the server, and their job folders.

rules.py      the check of what a key may read, write and run
arguments.py  a request as the arguments of `asap scan`
cluster.py    the check of a scan, and its submission by Ray's Jobs API
records.py    who asked for which job, as a small file for each in the store
views.py      a job as a response shows it
desk.py       submit, list, show and cancel jobs, and read their rows
"""

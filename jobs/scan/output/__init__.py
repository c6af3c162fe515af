"""The job folder of a scan, and what is written from its results.

job_folder.py      job.json, heartbeat, and the checks before a job resumes
completeness.py    results compared with the manifest, row by row
tally.py           counts over all result rows
kept_pairs.py      pairs of the results, added to a reuse store
json_rows.py       a result row as a line of JSON
summary.py         summary.json, errors.jsonl, flagged.jsonl, unfamiliar.jsonl
report.py          report/index.html
"""

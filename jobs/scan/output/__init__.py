"""The job folder of a scan, and what is written from its results.

job_folder.py      job.json, heartbeat, and the checks before a job resumes
completeness.py    results compared with the manifest, row by row
tally.py           counts over all result rows
parts.py           errors.jsonl, flagged.jsonl, unfamiliar.jsonl, and the counts, part by part
summary.py         summary.json
report.py          report/index.html
"""

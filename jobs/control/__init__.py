"""Verbs over job folders: they see, stop, query and delete a job through its folder alone, without Ray.

`asap.job_records` reads the folder.

follow.py        follow a job to its end, and cancel it
result_query.py  the results of a job, and its failed rows by code
flat_rows.py     rows without nesting, for a spreadsheet
row_formats.py   rows as JSON lines, CSV and Parquet
removal.py       delete a job folder
restart.py       the settings with which a job resumes, from its record
"""

"""Verbs over job folders: they see, stop, query and delete a job through its folder alone, without Ray.

status.py        the status of a job, and of all jobs below a folder
follow.py        follow a job to its end, and cancel it
result_query.py  rows of the results, filtered, as a stream
flat_rows.py     rows without nesting, for a spreadsheet
row_formats.py   rows as JSON lines, CSV and Parquet
removal.py       delete a job folder
restart.py       the settings with which a job resumes, from its record
"""

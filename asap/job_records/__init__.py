"""Jobs as their folders show them: read from any machine, without Ray, by the command line and by the server.

record.py     job.json, the end states, and the request to stop
status.py     the status of a job, of all jobs below a folder, and the exit code of one that has ended
rows.py       result rows that pass a filter, as a stream or a page at a time
json_rows.py  a result row as a line of JSON
"""

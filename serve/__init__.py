"""Online detection on Ray Serve: an HTTP API and a web page around a batched detector.

app.py       build(), and the Api deployment
run.py       start the server on one machine, run it, and drain it
deploy.py    the file for `serve deploy` on a cluster
proxy.py     the header filter before Ray's proxy
settings.py  ServeSettings
errors.py    errors that become responses
schemas.py   requests and responses
job_schemas.py  those of the routes of jobs
client.py    a client of the API
api/         the HTTP API
inference/   decoding and detection
jobs/        scans in bulk for callers, on the cluster of the server
page/        the web page, and the template of /docs
"""

"""The HTTP API, in the order in which a request passes it.

middleware.py     ids, headers, the log line, metrics, and the answer to unexpected errors
capacity.py       admission: the concurrency limit, and what is in use, in total and for each key
body.py           reading a body within the limits
callers/          keys, their rates, and who may call without one
routes.py         create_app, and the routes
job_routes.py     the routes of jobs
deadline.py       the deadline of a request
requests.py       a form or JSON becomes a PairRequest
forms.py          the parts of a form, and the encoding of its text
remote_images.py  pictures at s3:// and https:// addresses
replays.py        responses that are kept for a request which is sent again
audit.py          the log: a line of JSON for each request and each failure
metrics.py        the metrics of every process, for /metrics
openapi.py        the OpenAPI document
reference.py      the reference page at /docs
"""

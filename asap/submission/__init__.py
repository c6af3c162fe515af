"""Commands for a Ray cluster, as the command line and the server submit them by Ray's Jobs API. Nothing imports Ray.

entrypoint.py  the shell command and the environment with which Ray runs a command
token.py       the token of a cluster, where Ray looks for it
connection.py  how a dashboard is asked: time limits, no passwords of others, reasons in words
"""

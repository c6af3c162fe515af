"""The input of a scan, as manifest rows.

sources.py         an input -> manifest rows, one for each pair
record_files.py    JSON, JSON lines, CSV and Parquet files -> records
manifest.py        manifest rows -> the parquet files that the pipeline reads
"""

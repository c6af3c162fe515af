"""The input of a scan, as manifest rows.

sources.py         an input -> manifest rows, one for each pair
tables.py          a file of records -> manifest rows
record_files.py    JSON, JSON lines, CSV and Parquet files -> records
addresses.py       the addresses of pictures that a manifest names
folders.py         a folder of pictures and texts -> manifest rows
manifest.py        manifest rows -> the parquet files that the pipeline reads
"""

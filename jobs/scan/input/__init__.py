"""The input of a scan, as manifest rows.

sources.py      an input -> manifest rows, one for each pair
files/          the files at an address: tables in parts, folders of pictures, tars, inventories
tables/         one file of records: its format, its columns, its rows
addresses.py    the addresses of pictures that a manifest names
manifest.py     manifest rows -> the parquet files that the pipeline reads
"""

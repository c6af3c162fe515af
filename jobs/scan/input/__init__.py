"""The input of a scan, as manifest rows.

sources.py          an input -> manifest rows, one for each pair
listing.py          the files at an address, told apart by their names
globs.py            addresses with wildcards
parts.py            tables in several files -> manifest rows
tables.py           a file of records -> manifest rows
columns.py          names of columns -> their roles
rows.py             records -> manifest rows, by the roles of their columns
record_files.py     names of files of records, and the errors of records
csv_records.py      CSV and TSV files -> records
json_records.py     JSON lines, arrays and objects -> records
parquet_records.py  Parquet files -> records
inline.py           pictures in the tables themselves -> their addresses
encoding.py         text files of any encoding -> UTF-8
addresses.py        the addresses of pictures that a manifest names
folders.py          a folder of pictures and texts -> manifest rows
sidecars.py         text files beside pictures -> texts
shards.py           tars of pictures and texts -> manifest rows
tars.py             tars -> their members, without their content
inventory.py        an S3 Inventory -> manifest rows
manifest.py         manifest rows -> the parquet files that the pipeline reads
"""

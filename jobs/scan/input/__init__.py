"""The input of a scan, as manifest rows.

sources.py          an input -> manifest rows, one for each pair
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
manifest.py         manifest rows -> the parquet files that the pipeline reads
"""

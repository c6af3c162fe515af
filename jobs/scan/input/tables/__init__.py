"""One file of records, as manifest rows.

table.py            a file of records -> manifest rows
columns.py          names of columns -> their roles
plain_rows.py       plain records -> manifest rows, a column at a time
rows.py             records -> manifest rows, by the roles of their columns
record_files.py     names of files of records, and the errors of records
text_reader.py      what the readers of CSV and JSON have in common
csv_records.py      CSV and TSV files -> records
json_records.py     JSON files of any shape -> records
json_stream.py      JSON lines and arrays -> records, one at a time
json_shapes.py      objects around records -> records
parquet_records.py  Parquet files -> records
inline.py           pictures in the tables themselves -> their addresses
encoding.py         text files of any encoding -> UTF-8
"""

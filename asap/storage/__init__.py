"""Bytes at an address: a local path or s3://.

location.py         names of files and folders
files.py            read, write, list, copy, download and delete; atomic writes
s3.py               the S3 client and the pyarrow file systems
credentials.py      the credentials of S3, read again when they change
failures.py         exceptions -> error codes and messages
fetch.py            one file or object, with retries
fingerprint.py      has an input changed?
parquet_values.py   values of one column of a Parquet file, as a stream
picture_address.py  the address of a picture, and the bytes at it
"""

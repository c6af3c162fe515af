"""Bytes at an address: a local path or s3://.

location.py         names of files and folders
names.py            the other ways to write one name
prefixes.py         is an address below one of these prefixes?
files.py            read, write, list, copy, download and delete; atomic writes
objects.py          objects of S3: listings, and streams that survive broken bodies
s3.py               the S3 client, the checks of a bucket, and a pyarrow file system over the client
encoding.py         objects that are stored with Content-Encoding
credentials.py      the credentials of S3, read again when they change
failures.py         exceptions -> error codes, messages and what to do
fetch.py            one file or object, with retries
fingerprint.py      has an input changed?
folder_cache.py     copies of folders of a bucket, such as models, one download for each machine
fetched_file.py     one file or object, a block at a time; a change is an error
snappy.py           snappy's block format, as a stream
parquet_pages.py    the footer and the pages of a Parquet file
parquet_values.py   values of one column of a Parquet file, as a stream
picture_address.py  the address of a picture, and the bytes at it
"""

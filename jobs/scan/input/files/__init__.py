"""The files at an address, as manifest rows.

listing.py      the files at an address, told apart by their names
globs.py        addresses with wildcards
parts.py        tables in several files -> manifest rows
folders.py      a folder of pictures and texts -> manifest rows
sidecars.py     text files beside pictures -> texts
shards.py       tars of pictures and texts -> manifest rows
tars.py         tars -> their members, without their content
inventory.py    an S3 Inventory -> manifest rows
"""

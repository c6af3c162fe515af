"""Labeled data on disk or in a bucket.

reader.py           read_corpus: metadata -> records
annotations.py      one row checked, repaired or refused; the rules for that
folder.py           folders on this machine or in a bucket; JSON files
picture_index.py    names in the metadata -> files
picture_cache.py    pictures at a model's size
annotated.py        captions and explanations of a folder that asap annotate wrote
descriptions.py     captions and explanations joined to pairs
report.py           the findings of reading
"""

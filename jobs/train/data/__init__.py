"""The data of a training run.

splits.py       the corpus is read, its pictures are decoded or measured, and an index is written
split_index.py  the index of a split: its records and the sizes of their pictures
feed.py         the order of the records, and batches from the picture cache
stream.py       batches from pictures that Ray Data decodes anywhere in the cluster
prefetch.py     batches that a thread makes ahead of a GPU
"""

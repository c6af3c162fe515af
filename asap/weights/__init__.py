"""Tensors on disk, ours and those that others trained.

model_folder.py   save and load a model folder; its id
matching.py       shapes expected, mismatches, resized positions, the report
published.py      published ASAP and HAMMER checkpoints (.pth)
albef.py          ALBEF's pre-training checkpoint (.pth)
pretrained.py     ViTs of timm, BERTs of transformers
start.py          several sources -> one start for a training run
"""

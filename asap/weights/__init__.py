"""Tensors on disk, ours and those that others trained.

model_folder.py     save and load a model folder; its id
checkpoint_file.py  a file of others as plain tensors, or what it is instead
python_objects.py   Python objects in such a file, by class and key
matching.py         shapes expected, mismatches, resized positions, the report
other_models.py     checkpoints of other models, by their keys
published.py        published ASAP and HAMMER checkpoints (.pth)
albef.py            ALBEF's pre-training checkpoint (.pth)
pretrained.py       ViTs of timm, BERTs of transformers
start.py            several sources -> one start for a training run
"""

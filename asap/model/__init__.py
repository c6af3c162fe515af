"""The network.

config.py       ModelConfig: the shape of a model, and its presets
encoders.py     the image, text and fusion encoders
asap.py         Asap: encoders, image side and heads
activations.py  early activations, pooled: the features of familiarity
initial_values.py  the published initial values
execution.py    bfloat16, compilation and activation checkpointing
"""

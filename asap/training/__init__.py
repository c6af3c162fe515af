"""Training: the arithmetic of one step, and its data.

objective.py          the terms of the objective by name, their weights, the recipes
dataset.py            annotated pairs made ready to train on; samples into batches
batch.py              the padded tensors of a step
targets.py            annotation -> box, patch and type targets
augmentation.py       flip, RandAugment and changes of the web, which move the box with the picture
step.py               one training step: a batch in, the losses out
losses.py             every term as a pure function; the criterion
momentum.py           the momentum twin and the feature queues
word_prediction.py    the heads of caption word prediction and masked language modeling
micro_batches.py      gradient accumulation with exact means
memory.py             the memory of a step, counted on shapes
image_token_cache.py  image tokens of a locked image encoder
optimizer.py          AdamW groups, and their schedules: ours by step, the published one by epoch
distributed.py        the collective operations
"""

"""Preprocessing: untrusted images and texts to the tensors that the model reads.

words.py      whitespace words, caption cleaning, and an estimate of the passes a text takes
rereading.py  other readings of words that hide what they say
text.py       words to word pieces and back
images.py     guarded decoding, resizing and normalization
changes.py    changes of pictures that leave them authentic
"""

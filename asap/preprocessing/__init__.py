"""Preprocessing: untrusted images and texts to the tensors that the model reads.

words.py      whitespace words, caption cleaning, and an estimate of the passes a text takes
rereading.py  other readings of words that hide what they say
text.py       words to word pieces and back
formats.py    the format of a picture by its first bytes, and names for what is no picture
headers.py    numbers in headers that say how much work decoding will be
mending.py    damaged files made readable
images.py     guarded decoding, resizing and normalization
changes.py    changes of pictures that leave them authentic
"""

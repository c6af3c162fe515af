"""The version of the reading belongs to what the model gets."""

import hashlib
import json

import numpy as np
from PIL import Image

from asap.preprocessing.images import prepare_image
from asap.preprocessing.text import TextCodec, load_tokenizer
from asap.preprocessing.words import READING_VERSION
from asap.weights.model_folder import resolve_folder

TEXTS = [
    "The president's re-opening cost $5 -- he says", "te\u0301am pr\u043esident sm\u00adiles &nbsp; N A S A",
    "word " * 120, "\ufffd\u4f60\u597d 12,000 caf\u00e9", "-".join(["president"] * 90) + " team",
]  # fmt: skip
VERSION, READ = 1, "6c56f6cbee3d3393"
"""A version, and the hash of what the model gets of these texts and a picture under it."""


def test_a_change_of_what_the_model_gets_raises_the_version_of_the_reading() -> None:
    codec = TextCodec(load_tokenizer(resolve_folder("demo") / "tokenizer"))
    passes = [[(one.input_ids, one.word_index) for one in codec.encode(text)] for text in TEXTS]
    digest = hashlib.sha256(json.dumps(passes).encode())
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    digest.update(prepare_image(Image.fromarray(noise), 32).pixels.tobytes())
    assert (READING_VERSION, digest.hexdigest()[:16]) == (VERSION, READ), (
        "Another reading needs another READING_VERSION: raise it, and VERSION and READ here with it."
    )

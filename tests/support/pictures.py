"""Small images and captions that many tests use."""

import io

import numpy as np
from PIL import Image

CAPTIONS = (
    "The president smiles at a crowd in the capital",
    "Angry workers leave the factory after talks fail",
    "A team celebrates its first title in twenty years",
    "Rescue workers carry a child out of the flood",
)


def draw_jpeg(seed: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """Draw an image of soft noise, different for each seed, and encode it."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size).save(buffer, "JPEG")
    return buffer.getvalue()

"""The pixels that processors of transformers make of a picture, built from their settings without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image

from jobs.descriptions.engine import Reply, Request
from jobs.descriptions.pixels import cap_pixels
from jobs.descriptions.settings import DescriptionSettings
from jobs.descriptions.transformers_engine import TransformersEngine
from tests.support.tiny_captioners import WORDS, save_llava_next

SIDE, TILE = 128, 64
_TILES = {"size": {"height": TILE, "width": TILE}}
_GRID = [[TILE * height, TILE * width] for height in range(1, 7) for width in range(1, 7)]
_IN_TILES = 5 * TILE**2
"""Four tiles cover the largest picture; a fifth shows all of it."""
_OCR = {"size": {"height": 96, "width": 96}, "tile_size": TILE}
_OCR_TILES = 4 * TILE**2 + 96**2
PROCESSORS: dict[str, tuple[dict[str, Any], int, bool]] = {
    # Sizes that follow the picture. Qwen sees it as two frames, whose sides are rounded up to multiples of 28.
    "Qwen2VLImageProcessor": ({"size": {"shortest_edge": 512**2, "longest_edge": 4096**2}}, 3 * SIDE**2, True),
    "PixtralImageProcessor": ({"size": {"longest_edge": 1024}}, SIDE**2, False),
    "Idefics2ImageProcessor": ({"do_image_splitting": True}, SIDE**2, True),
    "Idefics3ImageProcessor": (
        {"size": {"longest_edge": 4 * TILE}, "max_image_size": {"longest_edge": TILE}}, _IN_TILES, True,
    ),
    "SmolVLMImageProcessor": (
        {"size": {"longest_edge": 4 * TILE}, "max_image_size": {"longest_edge": TILE}}, _IN_TILES, True,
    ),
    # Numbers of tiles.
    "GotOcr2ImageProcessor": (_TILES | {"crop_to_patches": True}, _IN_TILES, True),
    "Ovis2ImageProcessor": (_TILES | {"crop_to_patches": True}, _IN_TILES, False),
    "Cohere2VisionImageProcessor": (_TILES, _IN_TILES, False),
    "GraniteDoclingImageProcessor": (
        _TILES | {"dense_max_patches": 40, "dense_max_scale": 9.0, "dense_min_aspect": 0.1, "dense_max_aspect": 9.0},
        _IN_TILES, True,
    ),
    "DeepseekOcr2ImageProcessor": (_OCR, _OCR_TILES, True),
    "UnlimitedOcrImageProcessor": (_OCR, _OCR_TILES, True),
    "Llama4ImageProcessor": (_TILES, _IN_TILES, False),
    "PerceptionLMImageProcessor": (_TILES | {"tile_size": TILE}, _IN_TILES, True),
    "Molmo2ImageProcessor": ({"size": {"height": 140, "width": 140}}, 2 * 140**2, False),
    "Lfm2VlImageProcessor": ({"tile_size": TILE, "max_image_tokens": 4, "min_image_tokens": 2}, _IN_TILES, True),
    "MiniCPMV4_6ImageProcessor": ({"scale_resolution": 56}, 6 * 56**2 + 56 * 112, False),
    "MiniCPMOcrImageProcessor": ({"scale_resolution": 56}, 6 * 56**2 + 56 * 112, False),
    # Grids of tiles.
    "LlavaNextImageProcessor": (
        {"size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE}, "image_grid_pinpoints": _GRID},
        _IN_TILES, False,
    ),
    "LlavaOnevisionImageProcessor": (_TILES | {"image_grid_pinpoints": _GRID}, _IN_TILES, False),
    # Numbers of patches and of tokens. A flattened patch has its row and its column too.
    "Pix2StructImageProcessor": ({}, SIDE**2 + 64, True),
    "Kosmos2_5ImageProcessor": ({}, SIDE**2 + 64, True),
    "Gemma4ImageProcessor": ({}, 70 * 48**2, True),
    "Gemma4UnifiedImageProcessor": ({}, 70 * 48**2, True),
    "NemotronH_Omni_Reasoning_V3ImageProcessor": ({}, SIDE**2, True),
    "Emu3ImageProcessor": ({}, 18_000, True),
    "Kimi_K25ImageProcessor": ({}, 140**2, False),
}  # fmt: skip
"""By name: the settings of a processor, the most pixels that it may make, and whether it makes more without a cap."""


def _pixels(images: Any, shape: tuple[int, int]) -> int:
    """Return the pixels of a picture as the model gets it, with all its tiles."""
    found = images(images=[Image.new("RGB", shape)], return_tensors="pt")
    values = [found[name] for name in ("pixel_values", "pixel_values_local", "flattened_patches") if name in found]
    tensors = [tensor for value in values for tensor in (value if isinstance(value, list) else [value])]
    return sum(int(tensor.numel()) for tensor in tensors) // 3


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_makes_no_more_of_a_picture_than_the_cap_or_a_tile(name: str) -> None:
    settings, most, is_less = PROCESSORS[name]
    images = getattr(transformers, name)(**settings)
    shapes = [(SIDE, 96), (96, SIDE), (SIDE, SIDE), (SIDE, 32)]
    before = [_pixels(images, shape) for shape in shapes]
    cap_pixels(images, SIDE)
    after = [_pixels(images, shape) for shape in shapes]
    assert max(after) <= most
    assert (max(before) > most) is is_less
    assert all(new <= old for new, old in zip(after, before, strict=True))


def test_a_cap_below_a_tile_leaves_one_tile_or_the_smallest_grids() -> None:
    tiled = transformers.GotOcr2ImageProcessor(**_TILES, crop_to_patches=True)
    cap_pixels(tiled, TILE // 2)
    assert (tiled.min_patches, tiled.max_patches) == (1, 1)
    split = transformers.Lfm2VlImageProcessor(tile_size=TILE)
    cap_pixels(split, TILE // 2)
    assert (split.min_tiles, split.max_tiles) == (1, 1)
    grids = transformers.LlavaNextImageProcessor(image_grid_pinpoints=[[64, 128], [128, 64], [128, 128]])
    cap_pixels(grids, TILE // 2)
    assert grids.image_grid_pinpoints == [[64, 128], [128, 64]]


def test_a_large_cap_changes_nothing() -> None:
    for name, (settings, *_) in PROCESSORS.items():
        images, same = (getattr(transformers, name)(**settings) for _ in range(2))
        cap_pixels(images, 2**14)
        assert images.to_dict() == same.to_dict(), name


@pytest.mark.parametrize("name", ["CLIPImageProcessor", "BlipImageProcessor", "MllamaImageProcessor"])
def test_a_processor_of_a_fixed_size_or_number_of_tiles_is_left_as_it_is(name: str) -> None:
    images, same = getattr(transformers, name)(), getattr(transformers, name)()
    cap_pixels(images, 32)
    assert images.to_dict() == same.to_dict()


def test_a_model_takes_the_grids_that_its_processor_may_still_choose(tmp_path: Path) -> None:
    source = save_llava_next(tmp_path)
    found = {}
    for max_side in (32, 96):
        settings = DescriptionSettings(engine="transformers", source=source, max_new_tokens=4, max_side=max_side)
        engine = TransformersEngine(settings, "cpu")
        (found[max_side],) = engine.describe([Request("1", "1.jpg", Image.new("RGB", (200, 200), "red"))])
        assert engine._model.config.image_grid_pinpoints == engine._processor.image_processor.image_grid_pinpoints
    small, large = found[32], found[96]
    assert isinstance(small, Reply), small
    assert isinstance(large, Reply), large
    assert set(small.text.split()) <= set(WORDS)
    assert small.usage.input_tokens < large.usage.input_tokens, "fewer tiles are fewer tokens"

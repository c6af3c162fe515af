"""Caps on the pixels that a processor makes of a picture: they decide how many tokens the picture takes.

Pictures are shrunk to `max_side` before they reach a processor, and many processors enlarge them again. The image
processors of transformers do so in four ways, and each has settings of its own:

- to a size that follows the picture (Qwen, Pixtral, Idefics)
- to whole tiles, as many as a number allows (InternVL, Aya, Cohere, Ovis, Llama 4, Molmo, MiniCPM, LFM2 and others)
- to one of several grids of tiles (LLaVA-NeXT, LLaVA-OneVision), which the configuration of the model names too
- to a number of patches or of tokens (Pix2Struct, Gemma 4, Nemotron, Emu)

Others take one size, or always the same number of tiles (Mllama, Step): they are left as they are.
"""

from __future__ import annotations

from typing import Any

_LONGEST_SIDE = 2**14
"""Pixels beyond which the `longest_edge` of a processor is no side but an area."""
_TILES: dict[str, tuple[str, ...]] = {
    "max_patches": ("min_patches", "dense_max_patches"),
    "max_tiles": ("min_tiles",),
    "max_num_tiles": (),
    "max_crops": (),
    "max_slice_nums": (),
}
"""Names of the largest number of tiles, and of numbers that may not exceed it."""
_SOFT_TOKENS = (70, 140, 280, 560, 1120)
"""Numbers of tokens that a processor of Gemma 4 takes."""


def cap_pixels(processor: Any, max_side: int, config: Any = None) -> None:
    """Keep a processor from enlarging pictures beyond `max_side`, or beyond one tile if that is larger.

    A model of tiles sees the whole picture once more, as one tile.

    Args:
        processor: A processor of transformers, or an image processor.
        max_side: Largest side of a picture in pixels; tiles cover at most its square.
        config: Configuration of the model, which must name the same grids of tiles as the processor.
    """
    images = getattr(processor, "image_processor", processor)
    images = getattr(images, "_images", images)
    area = max_side**2
    _cap_size(images, max_side)
    _cap_tiles(images, area)
    _cap_grids(images, area, config)
    _cap_patches(images, area)


def _cap_size(images: Any, max_side: int) -> None:
    size: Any = getattr(images, "size", None) or {}
    sides = {name: value for name, value in dict(size).items() if value is not None}
    longest = sides.get("longest_edge")
    if longest is None:
        return
    # Qwen's processors count pixels there, others those of a side.
    is_area = longest > _LONGEST_SIDE
    # A processor of Idefics enlarges every picture to whole tiles, so one tile is the least.
    tile = dict(getattr(images, "max_image_size", None) or {}).get("longest_edge")
    most = max_side**2 if is_area else max(max_side // (tile or 1), 1) * (tile or 1)
    images.size = type(size)(**{name: min(value, most) for name, value in sides.items()})
    # That of Idefics2 enlarges quarters of a picture without tiles. They have no more to show than the whole.
    if getattr(images, "do_image_splitting", False) and tile is None and max_side < 2 * longest:
        images.do_image_splitting = False


def _cap_tiles(images: Any, area: int) -> None:
    tile_area = _area(getattr(images, "tile_size", None) or getattr(images, "scale_resolution", None))
    tile_area = tile_area or _area(getattr(images, "size", None))
    for name, others in _TILES.items():
        given = getattr(images, name, None)
        if given is None or not tile_area or (name == "max_patches" and _is_of_patches(images)):
            continue
        most = max(1, area // tile_area)
        for each in (name, *others):
            if getattr(images, each, None) is not None:
                setattr(images, each, min(getattr(images, each), most))


def _cap_grids(images: Any, area: int, config: Any) -> None:
    grids = getattr(images, "image_grid_pinpoints", None)
    if not grids:
        return
    # A model takes no picture without a grid: if none fits, the smallest ones stay.
    most = max(area, min(height * width for height, width in grids))
    grids = [grid for grid in grids if grid[0] * grid[1] <= most]
    images.image_grid_pinpoints = grids
    if config is not None:
        config.image_grid_pinpoints = grids


def _cap_patches(images: Any, area: int) -> None:
    patch_area = _area(getattr(images, "patch_size", None))
    units = {"min_pixels": 1, "max_pixels": 1, "min_num_patches": patch_area, "max_num_patches": patch_area}
    if _is_of_patches(images):
        units["max_patches"] = patch_area
    for name, unit in units.items():
        given = getattr(images, name, None)
        if given is not None and unit:
            setattr(images, name, min(given, max(1, area // unit)))
    if (soft := getattr(images, "max_soft_tokens", None)) is not None:
        fitting = area // (patch_area * images.pooling_kernel_size**2)
        images.max_soft_tokens = min(
            soft, max((one for one in _SOFT_TOKENS if one <= fitting), default=_SOFT_TOKENS[0])
        )


def _is_of_patches(images: Any) -> bool:
    """Return True if `max_patches` counts the patches of an encoder, and not tiles of a picture."""
    return hasattr(images, "patch_size") and not hasattr(images, "crop_to_patches")


def _area(side: Any) -> int:
    """Return the pixels of a square of this side, or of a size with a height and a width; 0 for any other."""
    if isinstance(side, int):
        return side**2
    size = dict(side or {})
    return int(size.get("height") or 0) * int(size.get("width") or 0)

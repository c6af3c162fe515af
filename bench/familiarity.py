"""Compare ways to tell the pictures that a model was made from, from pictures that it has never seen.

Each method gives a picture a strangeness, from the features of one layer or several: the mean and the standard
deviation of each channel over the picture. Newsroom pictures of one seed fit it. Those of a second seed turn it into a
conformal p-value, the share of held-out pictures that are at least as strange. Those of a third seed show how many
familiar pictures are lost at p < 0.005, and the photographs show how many strange ones are found.

- `mahalanobis`: the Mahalanobis distance to all pictures of the fit (Lee et al., NeurIPS 2018).
- `relative`: the smallest distance to a class of pictures (by manipulation of the face) minus that to all of them, with
  one covariance for the classes (Ren et al., 2021).
- `neighbors`: the cosine distance to the 5th nearest picture (Sun et al., ICML 2022).

    python bench/familiarity.py PHOTO … [--pairs 10000] [--model demo] [--seed 7003] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asap.familiarity import Gaussian

P_VALUE = 0.005
BATCH = 32
RIDGE = 1e-3
"""Added to the diagonal of a correlation matrix, so that it can be inverted."""
LAYERS = {
    "stem 2": ("stem 2",),
    "stem 3": ("stem 3",),
    "stem 4": ("stem 4",),
    "patch embedding": ("patches",),
    "block 1": ("block 1",),
    "last block": ("last block",),
    "stem 3 and 4": ("stem 3", "stem 4"),
    "stem 2 to 4": ("stem 2", "stem 3", "stem 4"),
    "stem 3 and 4, last block": ("stem 3", "stem 4", "last block"),
}
"""The combinations of layers that are compared. Stem N is the Nth convolution of the patch embedding, with its ReLU."""
Features = dict[str, Tensor]
Rows = NDArray[np.float64]


def watch_layers(encoder: nn.Module) -> Features:
    """Watch the layers of an image encoder with a convolutional stem; return the dict that each call fills."""
    found: Features = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            tokens_BNW = (output.flatten(2).transpose(1, 2) if output.ndim == 4 else output).float()
            found[name] = torch.cat([tokens_BNW.mean(1), tokens_BNW.std(1)], dim=1)

        return hook

    activations = [layer for layer in encoder.patch_embed.proj if isinstance(layer, nn.ReLU)]  # type: ignore[union-attr]
    for number, layer in enumerate(activations, 1):
        layer.register_forward_hook(keep(f"stem {number}"))
    encoder.patch_embed.register_forward_hook(keep("patches"))  # type: ignore[operator]
    encoder.blocks[0].register_forward_hook(keep("block 1"))  # type: ignore[index]
    encoder.blocks[-1].register_forward_hook(keep("last block"))  # type: ignore[index]
    return found


@torch.inference_mode()
def features_of(paths: Sequence[Path], encoder: nn.Module, found: Features, side: int) -> Features:
    """Return the features of pictures, (pictures, 2 * channels) for each layer."""
    from asap.preprocessing.images import normalize, prepare_image

    parts: list[Features] = []
    for start in range(0, len(paths), BATCH):
        pixels = np.stack([prepare_image(path, side).pixels for path in paths[start : start + BATCH]])
        encoder(normalize(pixels))
        parts.append(dict(found))
    return {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]}


class TiedGaussian:
    """The mean of rows and the inverse of their covariance, both of standardized columns."""

    def __init__(self, rows: Tensor, centers: Tensor | None = None) -> None:
        """Fit rows (N, D); `centers` (N, D) replaces their mean in the covariance."""
        self.mean, self.scale = rows.mean(0), rows.std(0) + 1e-8
        standard = (rows - (self.mean if centers is None else centers)) / self.scale
        covariance = standard.T @ standard / len(rows)
        self.precision = torch.linalg.inv(covariance + RIDGE * torch.eye(covariance.shape[0]).double())

    def distances(self, rows: Tensor, center: Tensor | None = None) -> Rows:
        """Return the squared Mahalanobis distance of each row."""
        apart = (rows - (self.mean if center is None else center)) / self.scale
        return ((apart @ self.precision) * apart).sum(1).numpy()


def mahalanobis(fit: Tensor, classes: Sequence[str]) -> Callable[[Tensor], Rows]:
    """Return the strangeness by the distance to all pictures, as `asap.familiarity` computes it."""
    return Gaussian.fit(fit).strangeness


def relative(fit: Tensor, classes: Sequence[str]) -> Callable[[Tensor], Rows]:
    """Return the strangeness by the distance to the nearest class, less that to all pictures."""
    members = {name: [row for row, other in enumerate(classes) if other == name] for name in sorted(set(classes))}
    means = {name: fit[rows].mean(0) for name, rows in members.items()}
    within = TiedGaussian(fit, centers=torch.stack([means[name] for name in classes]))
    everything = TiedGaussian(fit)

    def strangeness(rows: Tensor) -> Rows:
        nearest = np.min([within.distances(rows, mean) for mean in means.values()], axis=0)
        return nearest - everything.distances(rows)

    return strangeness


def neighbors(fit: Tensor, classes: Sequence[str]) -> Callable[[Tensor], Rows]:
    """Return the strangeness by the cosine distance to the 5th nearest picture."""
    mean, scale = fit.mean(0), fit.std(0) + 1e-8
    known = nn.functional.normalize((fit - mean) / scale)

    def strangeness(rows: Tensor) -> Rows:
        alike = nn.functional.normalize((rows - mean) / scale) @ known.T
        return 1 - alike.topk(5, dim=1).values[:, -1].numpy()

    return strangeness


METHODS = {"mahalanobis": mahalanobis, "relative": relative, "neighbors": neighbors}


def p_values(calibration: Rows, strangeness: Rows) -> Rows:
    """Return the conformal p-value of each strangeness."""
    above = len(calibration) - np.searchsorted(np.sort(calibration), strangeness, side="left")
    return (1 + above) / (1 + len(calibration))


def draw(folder: Path, pairs: int, seed: int) -> tuple[list[Path], list[str]]:
    """Draw newsroom pairs; return the paths of their pictures, each once, and the class of each by its face."""
    from asap.newsroom import generate

    generate(folder, pairs=pairs, seed=seed, splits=(0.0, 0.0, 1.0))
    records = json.loads((folder / "metadata/test.json").read_text())
    kinds = {record["image"]: record["fake_cls"].partition("&")[0] for record in records}
    return [folder / name for name in kinds], [kind if kind.startswith("face") else "orig" for kind in kinds.values()]


def main() -> None:
    """Compare the methods, print a table, and write JSON if requested."""
    from rich.console import Console
    from rich.table import Table

    from asap.weights.model_folder import load_folder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path, help="Pictures that the model has not seen.")
    parser.add_argument("--pairs", type=int, default=10_000, help="Pairs of the fit; a third as many for each check.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seed", type=int, default=7003)
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = parser.parse_args()
    model = load_folder(options.model)
    encoder, side = model.model.image_encoder, model.config.image_size
    found = watch_layers(encoder)
    with tempfile.TemporaryDirectory() as name:
        sizes = (options.pairs, options.pairs // 3, options.pairs // 3)
        drawn = [draw(Path(name) / str(part), size, options.seed + part) for part, size in enumerate(sizes)]
        fit, calibration, unseen = (features_of(paths, encoder, found, side) for paths, _ in drawn)
    photos = features_of(options.photos, encoder, found, side)
    figures = []
    for layers, names in LAYERS.items():
        joined = [torch.cat([part[name] for name in names], dim=1) for part in (fit, calibration, unseen, photos)]
        for method, build in METHODS.items():
            strangeness = build(joined[0], drawn[0][1])
            reference = strangeness(joined[1])
            of_unseen, of_photos = (p_values(reference, strangeness(rows)) for rows in joined[2:])
            figures.append({
                "layers": layers, "method": method, "photos": len(of_photos),
                "photos_below": float((of_photos < P_VALUE).mean()),
                "familiar_lost": float((of_unseen < P_VALUE).mean()),
                "most_familiar_photo": options.photos[int(of_photos.argmax())].name, "its_p": float(of_photos.max()),
            })  # fmt: skip
    table = Table("layers", "method", "photos below, %", "familiar lost, %", "most familiar photo")
    for row in figures:
        shares = (f"{100 * row[key]:.1f}" for key in ("photos_below", "familiar_lost"))
        table.add_row(row["layers"], row["method"], *shares, f"{row['most_familiar_photo']} (p {row['its_p']:.3f})")
    Console(width=140).print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Measure which pairs a model calls unfamiliar, and how it judges the others.

Every picture stands beside a text of the newsroom corpus, so that the picture alone makes the pair strange. A row of
the first table is a kind of picture: pairs, the share that is unfamiliar, and the flagged pairs as a share of the
judged ones and of all. All pairs are authentic, so flagged ones are false positives. "Learned" are the changes that the
familiarity was fitted with. The second table has newsroom pairs of unseen seeds, all together, by seed and by class:
the share that is lost as unfamiliar. The last line is the CPU time of detection with familiarity divided by that
without, in alternating rounds.

    python bench/unfamiliar.py [PHOTO …] [--pairs 500] [--unseen 12000] [--seeds 105 …] [--corpora PATH] [--model demo]
        [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from asap.finding import Finding, Pair
from asap.labels import FLAGGED
from asap.newsroom import generate
from asap.predictor import Predictor
from asap.preprocessing.changes import CHANGES, Change, blur, brighten, crop, flatten, recompress
from asap.preprocessing.images import prepare_image
from asap.weights.model_folder import ModelFolder, load_folder

SIDE = 256
Draw = Callable[[random.Random], Image.Image]


def stretched(picture: Image.Image, wide: int, high: int) -> Image.Image:
    """Stretch a picture to so many times its width and height."""
    return picture.resize((wide * picture.width, high * picture.height))


def speckled(picture: Image.Image) -> Image.Image:
    """Add noise to a picture, with a standard deviation of 20 levels."""
    pixels = np.asarray(picture, np.float32)
    noise = np.random.default_rng(0).normal(0, 20, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


OTHER_CHANGES: dict[str, Change] = {
    "blurred by 1.5 px": partial(blur, radius=1.5),
    "blurred by 3 px": partial(blur, radius=3),
    "0.6 times as bright": partial(brighten, times=0.6),
    "1.35 times as bright": partial(brighten, times=1.35),
    "0.7 times the contrast": partial(flatten, times=0.7),
    "a third of the color": lambda picture: ImageEnhance.Color(picture).enhance(1 / 3),
    "sharpened": lambda picture: picture.filter(ImageFilter.SHARPEN),
    "noise added": speckled,
    "cropped by a tenth": partial(crop, share=0.1),
    "JPEG 50": partial(recompress, quality=50),
    "JPEG 10": partial(recompress, quality=10),
    "ten times as wide": partial(stretched, wide=10, high=1),
    "ten times as high": partial(stretched, wide=1, high=10),
}
"""Changes of newsroom pictures that the familiarity did not learn from."""


def line_drawing(rng: random.Random) -> Image.Image:
    """Draw black lines on white paper."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(10, 40)):
        points = [(rng.randint(0, SIDE), rng.randint(0, SIDE)) for _ in range(rng.randint(2, 6))]
        draw.line(points, fill="black", width=rng.randint(1, 4), joint="curve")
    return picture


def poster(rng: random.Random) -> Image.Image:
    """Draw flat shapes in a few colors."""
    colors = [tuple(rng.randint(0, 255) for _ in range(3)) for _ in range(5)]
    picture = Image.new("RGB", (SIDE, SIDE), colors[0])
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(5, 25)):
        x, y, w, h = (rng.randint(0, SIDE - 1) for _ in range(4))
        shape = rng.choice([draw.ellipse, draw.rectangle])
        shape((x, y, min(SIDE, x + w // 2), min(SIDE, y + h // 2)), fill=rng.choice(colors))
    return picture


def pixel_art(rng: random.Random) -> Image.Image:
    """Draw blocks of a palette of eight colors."""
    palette = [[rng.randint(0, 255) for _ in range(3)] for _ in range(8)]
    blocks = np.array([[rng.choice(palette) for _ in range(16)] for _ in range(16)], np.uint8)
    return Image.fromarray(blocks).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def hatching(rng: random.Random) -> Image.Image:
    """Draw a ball in strokes of a pencil."""
    picture = Image.new("RGB", (SIDE, SIDE), (245, 240, 230))
    draw = ImageDraw.Draw(picture)
    radius, angle = rng.randint(40, 110), rng.uniform(0, 3)
    for _ in range(900):
        x, y = (rng.gauss(SIDE / 2, radius / 2) for _ in range(2))
        gray = rng.randint(40, 140)
        draw.line((x, y, x + 14 * np.cos(angle), y + 14 * np.sin(angle)), fill=(gray, gray, gray))
    return picture


def screenshot(rng: random.Random) -> Image.Image:
    """Draw a page of text."""
    picture = Image.new("RGB", (SIDE, SIDE), rng.choice(["white", "#15181c", "#f4f1ea"]))
    draw, ink = ImageDraw.Draw(picture), "black" if picture.getpixel((0, 0))[0] > 99 else "white"  # type: ignore[index]
    size = rng.randint(9, 18)
    for row in range(SIDE // (size + 4)):
        words = " ".join("".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(8))
        draw.text((8, 4 + row * (size + 4)), words, fill=ink, font=ImageFont.load_default(size))
    return picture


def noise(rng: random.Random) -> Image.Image:
    """Draw every pixel at random."""
    return Image.frombytes("RGB", (SIDE, SIDE), rng.randbytes(3 * SIDE * SIDE))


def blank(rng: random.Random) -> Image.Image:
    """Draw one color."""
    return Image.new("RGB", (SIDE, SIDE), rng.choice(["white", "black", f"#{rng.randrange(2**24):06x}"]))


def gradient(rng: random.Random) -> Image.Image:
    """Draw a smooth change between four colors."""
    corners = np.array([rng.randint(0, 255) for _ in range(12)], np.uint8).reshape(2, 2, 3)
    return Image.fromarray(corners).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


DRAWN: dict[str, Draw] = {
    "line drawing": line_drawing,
    "flat shapes": poster,
    "pixel art": pixel_art,
    "pencil strokes": hatching,
    "screenshot of text": screenshot,
    "noise": noise,
    "blank": blank,
    "color gradient": gradient,
}
"""Pictures of other kinds."""


def costs(loaded: ModelFolder, pairs: Sequence[Pair], rounds: int = 15) -> list[float]:
    """Return the CPU time of detection with familiarity, divided by that without, for each round."""
    torch.set_num_threads(1)  # threads that wait for each other would count as work
    ways = [Predictor(replace(loaded, familiarity=kept), batch_size=64) for kept in (loaded.familiarity, None)]
    images = [prepare_image(pair.image, ways[0].image_size) for pair in pairs]
    ratios = []
    for _ in range(rounds + 1):
        seconds = []
        for predictor in ways:
            started = time.process_time()
            predictor.predict_prepared(images, [pair.text for pair in pairs])
            seconds.append(time.process_time() - started)
        ratios.append(seconds[0] / seconds[1])
    return ratios[1:]  # the first round warms up


def main() -> None:
    """Draw the pictures, detect, print both tables, and write JSON if requested."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path, help="Photographs.")
    parser.add_argument("--pairs", type=int, default=500, help="Pairs of each kind.")
    parser.add_argument("--unseen", type=int, default=12_000, help="Newsroom pairs of each seed in the second table.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[105], help="Seeds of newsroom corpora.")
    parser.add_argument("--corpora", type=Path, help="Folder that keeps the corpora. Default: a temporary one.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = parser.parse_args()
    predictor = Predictor.from_folder(options.model, batch_size=64)
    rows: list[dict[str, Any]] = []

    def add(kind: str, findings: list[Finding]) -> None:
        judged = [finding for finding in findings if finding.verdict != "unfamiliar"]
        flagged = sum(finding.verdict in FLAGGED for finding in judged)
        by_picture = np.mean([(finding.familiarity_image or 0) < predictor.policy.unfamiliar for finding in findings])
        rows.append({
            "kind": kind, "pairs": len(findings), "unfamiliar": 1 - len(judged) / len(findings),
            "unfamiliar_picture": float(by_picture), "judged": len(judged),
            "flagged_of_judged": flagged / len(judged) if judged else None, "flagged": flagged / len(findings),
        })  # fmt: skip

    lost: dict[str, list[bool]] = {"all": []}
    with tempfile.TemporaryDirectory() as name:
        corpora = {seed: (options.corpora or Path(name)) / str(seed) for seed in options.seeds}
        for seed, corpus in corpora.items():
            if not corpus.exists():
                generate(corpus, pairs=options.unseen, seed=seed, splits=(0.0, 0.0, 1.0))
            records = json.loads((corpus / "metadata/test.json").read_text())
            pairs = [Pair(corpus / record["image"], record["text"]) for record in records]
            for record, finding in zip(records, predictor.predict(pairs), strict=True):
                for key in ("all", f"seed {seed}", record["fake_cls"]):
                    lost.setdefault(key, []).append(finding.verdict == "unfamiliar")
        ratios = costs(load_folder(options.model), pairs[:512])

        corpus = corpora[options.seeds[0]]
        records = json.loads((corpus / "metadata/test.json").read_text())
        authentic = [record for record in records if record["fake_cls"] == "orig"][: options.pairs]
        pictures = [Image.open(corpus / record["image"]).convert("RGB") for record in authentic]
        texts = [record["text"] for record in authentic]
        changes = {"as it is": lambda picture: picture}
        changes |= {f"{kind} (learned)": change for kind, change in CHANGES.items()} | OTHER_CHANGES
        for kind, change in changes.items():
            pairs = [Pair(change(picture), text) for picture, text in zip(pictures, texts, strict=True)]
            add(f"newsroom, {kind}", predictor.predict(pairs))
        rng = random.Random(options.seeds[0])
        for kind, draw in DRAWN.items():
            add(kind, predictor.predict([Pair(draw(rng), text) for text in texts]))
        if options.photos:
            add(
                "photographs", predictor.predict([Pair(p, texts[i % len(texts)]) for i, p in enumerate(options.photos)])
            )
    losses = {key: {"pairs": len(values), "lost": float(np.mean(values))} for key, values in lost.items()}

    console = Console(width=120)
    table = Table("pictures", "pairs", "unfamiliar, %", "by picture, %", "judged", "flagged of these, %", "of all, %")
    for row in rows:
        flagged = row["flagged_of_judged"]
        table.add_row(
            row["kind"], str(row["pairs"]), f"{100 * row['unfamiliar']:.1f}", f"{100 * row['unfamiliar_picture']:.1f}",
            str(row["judged"]), "" if flagged is None else f"{100 * flagged:.1f}", f"{100 * row['flagged']:.1f}",
        )  # fmt: skip
    console.print(table)
    table = Table("newsroom pairs", "pairs", "lost, %")
    for key, row in losses.items():
        table.add_row(key, str(row["pairs"]), f"{100 * row['lost']:.2f}")
    console.print(table)
    console.print(f"cost: {np.median(ratios):.3f} times ({min(ratios):.3f} to {max(ratios):.3f})")
    if options.json:
        options.json.write_text(json.dumps({"kinds": rows, "lost": losses, "cost": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()

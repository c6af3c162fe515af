"""`asap newsroom`: draw a small corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.cli.options import check_local


def newsroom(
    out: Annotated[Path, typer.Argument(help="New folder for the corpus.")],
    pairs: Annotated[int, typer.Option(min=1, help="Number of image-text pairs, over all splits.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed. The same seed draws the same corpus.")] = 0,
    splits: Annotated[
        tuple[float, float, float], typer.Option(help="Fractions of the pairs in train, val and test.")
    ] = (0.8, 0.1, 0.1),
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes. Default: one per core.")] = None,
) -> None:
    """Draw a small corpus in DGM4's layout: news pictures and captions, some of them manipulated."""
    check_local(out, "OUT")
    from asap.newsroom import generate
    from jobs.cli.display import count_shown

    with count_shown(Console(), "drawing", before="planning the corpus") as progress:
        drawn = generate(out, pairs=pairs, seed=seed, workers=workers, splits=splits, progress=progress)
    counts = ", ".join(f"{count} {name}" for name, count in drawn.pairs.items())
    typer.echo(f"{drawn.corpus_version}: {counts}; {drawn.pictures} pictures in {drawn.out}")

"""`asap captioner`: train a small captioner on a drawn corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.cli.options import check_local


def captioner(
    corpus: Annotated[Path, typer.Argument(help="Corpus of asap newsroom, whose train split is learned.")],
    unseen: Annotated[Path, typer.Option(help="Corpus of another seed, whose test split is for the card.")],
    out: Annotated[Path, typer.Option(help="New folder for the captioner.")],
    pairs: Annotated[int, typer.Option(min=1, help="Number of pairs to show, counting each time.")] = 190_000,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder that keeps the decoded pictures. Default: a temporary one.")
    ] = None,
) -> None:
    """Train a small captioner on the captions of a drawn corpus, and measure what it names rightly."""
    for argument, path in (("CORPUS", corpus), ("--unseen", unseen), ("--out", out)):
        check_local(path, argument)
    from asap.errors import ConfigError
    from asap.newsroom.corpus import check_drawn
    from jobs.cli.display import count_shown

    # Said here too, since transformers and torch take seconds to load.
    if out.exists():
        raise ConfigError(f"folder {out} exists. Name a new folder for the captioner.")
    for folder in (corpus, unseen):
        check_drawn(folder)
    from asap.newsroom.captioner_model import make_captioner

    with count_shown(Console(), "training", before="reading the corpus") as progress:
        text = make_captioner(corpus, unseen, out, pairs, pictures, lambda shown, loss: progress(shown, pairs))
    typer.echo(text)

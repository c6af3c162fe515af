"""Settings of an evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.settings import CorpusSettings


class EvaluateSettings(CorpusSettings):
    """An evaluation: which model, on which labelled pairs, and how to run."""

    model: str
    corpus: str
    """A folder in DGM4's layout, on a disk that the workers share, or s3://."""
    split: str = "test"
    out: str = "evaluation"
    """A folder or s3:// for the figures, the pictures and the page."""
    limit: int | None = Field(default=None, ge=1)
    """Judge only the first so many pairs."""
    worst: int = Field(default=20, ge=0)
    """Pairs that the page shows, those whose score is furthest from the truth."""
    batch_size: int = Field(default=64, ge=1)
    """Pairs that are judged together."""
    shard_pairs: int = Field(default=512, ge=1)
    """Pairs that are lost, and judged again, if a worker dies."""

    workers: int | None = Field(default=None, ge=1)
    """Shards judged at a time; None: one a GPU, or one for every two CPUs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    address: str | None = None
    """Of a running Ray cluster; None starts Ray on this machine."""
    wait_for_machines_s: float = Field(default=900, ge=0)
    """How long a cluster at `address` is given to bring machines that the workers need, as its autoscaler does."""

"""Settings of an evaluation."""

from __future__ import annotations

from pydantic import Field

from jobs.settings import ClusterSettings, CorpusSettings, WatchSettings


class EvaluateSettings(CorpusSettings, ClusterSettings, WatchSettings):
    """An evaluation: which model, on which labeled pairs, and how to run."""

    model: str
    corpus: str
    """A folder in DGM4's layout on a disk that all workers can read, or s3://."""
    split: str = "test"
    out: str = "evaluation"
    """Folder or s3:// prefix for the metrics, the charts and the page."""
    limit: int | None = Field(default=None, ge=1)
    """Number of pairs to evaluate, from the start. None: all."""
    worst: int = Field(default=20, ge=0)
    """Number of pairs on the page: those whose score is furthest from the truth."""
    batch_size: int = Field(default=64, ge=1)
    """Pairs of one forward pass."""
    shard_pairs: int = Field(default=512, ge=1)
    """Pairs of one shard. If a worker dies, its shard is lost and is evaluated again."""

    workers: int | None = Field(default=None, ge=1)
    """Shards evaluated in parallel. None: one per GPU, or one per two CPUs."""

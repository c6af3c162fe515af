"""Stages that end their process. Ray's workers cannot import this module, so tests pickle it by value."""

from __future__ import annotations

import pyarrow as pa

from jobs.scan.stages.caption import CaptionStage
from jobs.scan.stages.detect import Detector


class Deadly(Detector):
    """A detector that ends its process at texts with `poison`, as a crash in a library would."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        import os

        if any("poison" in (text or "") for text in batch["text"].to_pylist()):
            os._exit(1)
        return super().__call__(batch)


class DeadlyCaptioner(CaptionStage):
    """A captioner that ends its process at its first batch, and at each batch with `poison` in a text."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        import os
        from pathlib import Path

        if any("poison" in (text or "") for text in batch["text"].to_pylist()):
            os._exit(1)
        died = Path(f"{self._settings.source}.died")
        if not died.exists():
            died.touch()
            os._exit(1)
        return super().__call__(batch)

"""A detector that ends its process. Ray's workers cannot import this module, so tests pickle it by value."""

from __future__ import annotations

import pyarrow as pa

from jobs.scan.stages.detect import Detector


class Deadly(Detector):
    """A detector that ends its process at texts with `poison`, as a crash in a library would."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        import os

        if any("poison" in (text or "") for text in batch["text"].to_pylist()):
            os._exit(1)
        return super().__call__(batch)

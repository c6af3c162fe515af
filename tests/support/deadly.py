"""A detector that ends its process; workers of Ray do not find this module, so a test has it pickled by value."""

from __future__ import annotations

import pyarrow as pa

from jobs.scan.stages.detect import Detector


class Deadly(Detector):
    """Ends its process at some texts, as a crash in a library would."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        import os

        if any("poison" in (text or "") for text in batch["text"].to_pylist()):
            os._exit(1)
        return super().__call__(batch)

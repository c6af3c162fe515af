"""Stages whose model fails or ends their process.

Ray's workers cannot import this module, so tests pickle it by value.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest
from ray import cloudpickle

from jobs.annotate import pipeline as annotate_pipeline
from jobs.annotate.stage import DescribeStage
from jobs.descriptions.engine import Outcome, Request
from jobs.descriptions.left_out import LeftOut
from jobs.descriptions.transformers_engine import TransformersEngine
from jobs.scan import pipeline
from jobs.scan.stages.describe import DescriptionStage
from jobs.scan.stages.detect import Detector


@contextmanager
def stages_replaced(
    monkeypatch: pytest.MonkeyPatch, *, scan: type | None = None, annotate: type | None = None
) -> Iterator[None]:
    """Have the jobs describe by stages of this module during the block, and try a lost batch twice."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    if scan is not None:
        monkeypatch.setattr(pipeline, "DescriptionStage", scan)
    if annotate is not None:
        monkeypatch.setattr(annotate_pipeline, "DescribeStage", annotate)
    monkeypatch.setattr(pipeline, "TRIES", 2)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


class Deadly(Detector):
    """A detector that ends its process at texts with `poison`, as a crash in a library would."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        import os

        if any("poison" in (text or "") for text in batch["text"].to_pylist()):
            os._exit(1)
        return super().__call__(batch)


class DeadlyCaptioner(DescriptionStage):
    """A captioner that ends its process at its first batch, and at each batch with `poison` in a text."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        import os
        from pathlib import Path

        if isinstance(self._engine, LeftOut):
            return super().__call__(batch)
        if any("poison" in (text or "") for text in batch["text"].to_pylist()):
            os._exit(1)
        died = Path(f"{self._settings.source}.died")
        if not died.exists():
            died.touch()
            os._exit(1)
        return super().__call__(batch)


DEADLY_ROW = 5


class DeadlyExplainer(DescribeStage):
    """A stage of annotations whose process is killed while it explains the text of `DEADLY_ROW`.

    The process has claimed the text by then.
    """

    def _write(self, requests: Mapping[str, Request]) -> dict[str, Outcome]:
        import os
        import signal

        texts = [request.text or "" for request in requests.values()]
        is_explainer = self._order.settings.kind == "explanation" and not isinstance(self._engine, LeftOut)
        if is_explainer and any(text.endswith(f" {DEADLY_ROW}") for text in texts):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._write(requests)


HUNGRY, DEADLY = 103, 105
"""Widths of the pictures for which a model asks for too much memory, and whose generation kills its process."""


class _FailingModel:
    """A model of transformers that fails at its second step: the model has written a word by then.

    It asks for more memory than any machine has for a `HUNGRY` picture. For a `DEADLY` one the process is killed, as
    the kernel does when memory runs out, and once more at the first batch of all.
    """

    def __init__(self, engine: Any) -> None:
        self._generate, self._died = engine._generate, f"{engine._settings.source}.died"
        self._widths: set[int] = set()
        self._steps = 0
        engine._generate = self.generate
        engine._model.register_forward_pre_hook(self._before_step)

    def generate(self, requests: Sequence[Request]) -> list[Outcome]:
        self._widths, self._steps = {request.image.width for request in requests if request.image}, 0
        found: list[Outcome] = self._generate(requests)
        return found

    def _before_step(self, model: Any, inputs: Any) -> None:
        import os
        import signal
        from pathlib import Path

        import torch

        self._steps += 1
        if self._steps < 2:
            return
        is_first = not Path(self._died).exists()
        Path(self._died).touch()
        if is_first or DEADLY in self._widths:
            os.kill(os.getpid(), signal.SIGKILL)
        if HUNGRY in self._widths:
            torch.empty(2**50, dtype=torch.uint8)


class FailingCaptioner(DescriptionStage):
    """A captioner of a scan with a `_FailingModel`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if not isinstance(self._engine, LeftOut):
            _FailingModel(self._engine)


class FailingAnnotator(DescribeStage):
    """A stage of annotations with a `_FailingModel`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if isinstance(self._engine, TransformersEngine):
            _FailingModel(self._engine)


class ReplacedCaptioner(DescriptionStage):
    """A captioner whose model is replaced while it works, and whose process then ends, so that Ray starts another."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        import os
        from pathlib import Path

        weights = Path(self._settings.source) / "model.safetensors"
        content = weights.read_bytes()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os._exit(1)

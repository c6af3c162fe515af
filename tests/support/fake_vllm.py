"""Ray's stage of vLLM with another model behind it, which needs no GPU: the plumbing is Ray's, the texts are not.

Ray's workers cannot import this module, so tests pickle it by value.
"""

from __future__ import annotations

import base64
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.annotate import pipeline as annotate_pipeline
from jobs.descriptions.settings import DescriptionSettings
from jobs.descriptions.vllm_engine import Placement
from jobs.scan import pipeline as scan_pipeline
from jobs.scan.pipeline import StageResources

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, about these modules
    from ray.llm._internal.batch.processor.base import OfflineProcessorConfig, Processor
    from ray.llm._internal.batch.stages.base import StatefulStageUDF
    from ray.llm._internal.batch.stages.vllm_engine_stage import vLLMEngineRequest, vLLMEngineStage, vLLMEngineStageUDF

SETTINGS = {"engine": "vllm", "source": "some/name", "max_new_tokens": 20}
INPUT_TOKENS, OUTPUT_TOKENS = 100, 7


class _Model:
    """A model that names the width of a picture, or repeats its prompt, and notes each request in a file."""

    def __init__(self, log: str) -> None:
        self._log = log

    async def generate_async(self, row: dict[str, Any]) -> tuple[Any, dict[str, Any], float]:
        content = row.pop("messages")[0]["content"]
        if isinstance(content, str):
            about = content.rpartition('image: "')[2].removesuffix('"')
            wrote = f"this is about {about}"
        else:
            data = base64.b64decode(content[0]["image_url"]["url"].partition(",")[2])
            about = f"width {Image.open(BytesIO(data)).width}"
            wrote = f"a picture of {about}"
        with Path(self._log).open("a") as log:
            log.write(f"{about}\n")
        if "deadly" in about:
            import os

            os._exit(1)
        if "hungry" in about:
            raise RuntimeError("torch.OutOfMemoryError: CUDA out of memory")
        if "bad" in about:
            raise ValueError("The prompt is longer\nthan the model can read")
        most = row.pop("sampling_params")["max_tokens"]
        request = vLLMEngineRequest(request_id=0, idx_in_batch=row["__idx_in_batch"], prompt="-", params=None)
        written = most if "long" in about else OUTPUT_TOKENS
        return request, {
            "generated_text": wrote, "num_input_tokens": INPUT_TOKENS, "num_generated_tokens": written, "metrics": {},
        }, 0.1  # fmt: skip


class FakeEngine(vLLMEngineStageUDF):  # type: ignore[misc]
    """Ray's class of vLLM's stage, which handles batches and errors, with another model behind it."""

    def __init__(self, data_column: str, expected_input_keys: list[str], model: str, log: str) -> None:
        StatefulStageUDF.__init__(self, data_column, expected_input_keys)
        self.llm, self.should_continue_on_error = _Model(log), True
        self.engine_kwargs = {"disable_log_stats": True}

    def __del__(self) -> None:
        """Do nothing: there is no vLLM to end."""


def fake_build(settings: DescriptionSettings, placement: Placement, log: str, **mapping: Any) -> Any:
    """Return Ray's processor as `vllm_engine.build` does, with the one stage `FakeEngine`."""
    stage = vLLMEngineStage(
        fn=FakeEngine,
        fn_constructor_kwargs={"model": settings.place, "log": log},
        map_batches_kwargs={"zero_copy_batch": True, "max_concurrency": 4},
    )
    stage.map_batches_kwargs["num_gpus"] = 0
    config = OfflineProcessorConfig(
        model_source=settings.place, batch_size=placement.batch_size, should_continue_on_error=True
    )
    return Processor(config, [stage], **mapping)


def facts_here(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a machine that has vLLM, and a model at a commit."""
    return {"machine": "here", "vllm": "0.0", "revision": "0123abc"}


def _annotate_room(settings: Any, notify: Callable[[str], None]) -> Any:
    engines = {kind: StageResources(0.1, 0, 1) for kind in settings.engines}
    return annotate_pipeline.Room(StageResources(0.25, size=1), engines, "cpu", 1)


def _scan_room(settings: Any, engines: Mapping[str, Any], notify: Callable[[str], None]) -> Any:
    shares = scan_pipeline.size_stages(settings, {}, [2.0], on_gpu=False)
    describe = {kind: StageResources(0.1, 0, 1) for kind in engines}
    return scan_pipeline.Room(shares._replace(describe=describe), "cpu")


@contextmanager
def fake_vllm(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Callable[[], list[str]]]:
    """Have jobs of this process run `FakeEngine` on CPUs; yield a function that returns what was asked, in order."""
    from ray import cloudpickle

    log = folder / "asked.txt"
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with monkeypatch.context() as patch:
        patch.setattr("jobs.descriptions.loading.find_spec", lambda name: name)
        patch.setattr("jobs.descriptions.vllm_engine.build", partial(fake_build, log=str(log)))
        patch.setattr("jobs.descriptions.vllm_engine.hub_folder", lambda name, revision: name)
        patch.setattr("jobs.scan.trial.facts_there", facts_here)
        patch.setattr(annotate_pipeline, "find_room", _annotate_room)
        patch.setattr(scan_pipeline, "find_room", _scan_room)
        yield lambda: log.read_text().splitlines() if log.exists() else []
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])

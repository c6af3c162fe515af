"""Descriptions by vLLM, as stages of Ray Data: pictures and chat templates on CPUs, the model on GPUs.

vLLM batches by itself, over all rows that flow past, so it is no engine that gets one batch after another. The stages
are those of `ray.data.llm`. No model has been run by vLLM here yet: only the rows around it are tested.
"""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from asap.errors import AsapError
from jobs.descriptions.chat_templates import ChatTemplate, has_words, load_chat_template
from jobs.descriptions.loading import check_source
from jobs.descriptions.model_files import find_commit, hub_folder, is_hub_name
from jobs.descriptions.pinning import CONTENT, check_content_of_vllm, content_of
from jobs.descriptions.prompts import chat_prompt
from jobs.descriptions.settings import BATCHES_AT_VLLM, DescriptionSettings
from jobs.descriptions.vllm_rows import ERROR, KNOWN, NOT_ASKED, PICTURE, PROMPT, ROWS

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

HELPER_CPUS = 0.25
"""CPUs of each process that prepares pictures or fills the chat template."""
_TEMPLATE_STAGE, _ENGINE_STAGE = "ChatTemplateStage", "vLLMEngineStage"


@dataclass(frozen=True)
class Placement:
    """The place of vLLM's stages on the machines, and how rows travel through them."""

    batch_size: int
    """Rows that travel together."""
    cpus: float = 1
    """CPUs of a process of vLLM."""
    engines: int | None = None
    """Number of processes of vLLM. None: as many as the machines hold."""
    task_cpus: float = HELPER_CPUS
    """CPUs of a task that makes requests of rows."""
    tries: int = 1
    """Tries of a batch whose process dies."""
    restarts: int = -1
    """Times that a process which died is started again. -1: always, since what ended it may pass."""
    is_one_at_a_time: bool = False
    """True for rows that travel alone: a process that dies takes no other row with it."""


def add_vllm_stages(
    dataset: Dataset,
    ask: Callable[[pa.Table], pa.Table],
    settings: DescriptionSettings,
    placement: Placement,
    content: str | None = None,
) -> Dataset:
    """Return a dataset with the stages that describe its rows. `Written.read` makes rows of the job of its blocks.

    Args:
        dataset: Rows of a job.
        ask: Makes rows with requests of a batch, as `vllm_rows.ask` does.
        settings: Settings of the engine.
        placement: The place of the stages.
        content: Fingerprint of the model that the job began with; see `jobs.descriptions.pinning`.
    """
    task = {"num_cpus": placement.task_cpus, "max_retries": placement.tries - 1}
    asked = dataset.map_batches_internal(ask, batch_size=placement.batch_size, batch_format="pyarrow", **task)
    processor = build(
        settings, placement, preprocess=partial(engine_row, settings), postprocess=written_row,
        preprocess_map_kwargs=task, postprocess_map_kwargs=task,
    )  # fmt: skip
    for name, stage in processor.stages.items():
        options = _options(placement, is_engine=name == _ENGINE_STAGE)
        if name == _TEMPLATE_STAGE:
            pinned = _templated_class(stage.fn, settings, content)
        else:
            pinned = _pinned_class(stage.fn, settings, content, reads_weights=name == _ENGINE_STAGE)
        processor.stages[name] = _PinnedStage(stage, pinned, options)
    return processor(asked)


def build(settings: DescriptionSettings, placement: Placement, **mapping: Any) -> Any:
    """Return Ray's processor for a model. Ray must run; vLLM is imported by the machines that load the model.

    Args:
        settings: Settings of the engine.
        placement: The place of the stages.
        mapping: What Ray does to a row before and after the stages, as arguments of `build_processor`.
    """
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    options: dict[str, Any] = dict(settings.vllm.options) if settings.vllm else {}
    if settings.kind == "caption":
        options = {"limit_mm_per_prompt": {"image": 1}} | options
    if settings.dtype is not None:
        options["dtype"] = settings.dtype
    # Weights that could run code are not loaded. With `mp`, all GPUs of a process are on its machine, and Ray sees them
    # as its own.
    options |= {"seed": 0, "load_format": "safetensors", "trust_remote_code": False}
    if settings.gpus > 1:
        options |= {"tensor_parallel_size": settings.gpus, "distributed_executor_backend": "mp"}
    helper = {"enabled": True, "num_cpus": HELPER_CPUS}
    config = vLLMEngineProcessorConfig(
        model_source=settings.place,
        engine_kwargs=options,
        batch_size=placement.batch_size,
        max_concurrent_batches=1 if placement.is_one_at_a_time else BATCHES_AT_VLLM,
        should_continue_on_error=True,
        prepare_multimodal_stage=helper if settings.kind == "caption" else False,
        chat_template_stage=helper,
        # vLLM does both itself. Each further stage would cost the driver time for each batch.
        tokenize_stage=False,
        detokenize_stage=False,
    )
    return build_processor(config, **mapping)


@dataclass(frozen=True)
class _PinnedStage:
    """A stage of Ray's processor, with another class and further options."""

    stage: Any
    fn: Any
    options: dict[str, Any]

    def get_dataset_map_batches_kwargs(self, **about: Any) -> dict[str, Any]:
        """Return the options of the stage, for the processor."""
        return dict(self.stage.get_dataset_map_batches_kwargs(**about)) | self.options


def _options(placement: Placement, *, is_engine: bool) -> dict[str, Any]:
    """Return the options of a stage that Ray's configuration cannot give: its pool, and bounds on tries."""
    from ray.data import ActorPoolStrategy

    size = placement.engines if is_engine else None
    pool = ActorPoolStrategy(
        **({"size": size} if size else {"min_size": 1}),
        max_tasks_in_flight_per_actor=1 if placement.is_one_at_a_time else None,
    )
    # Whole blocks are batches: Ray cannot join two of which one has a null where the other has a struct.
    options: dict[str, Any] = {"compute": pool, "batch_size": None}
    options |= {"max_restarts": placement.restarts, "max_task_retries": placement.tries - 1}
    return options | ({"num_cpus": placement.cpus} if is_engine else {})


def _pinned_class(stage: Any, settings: DescriptionSettings, content: str | None, *, reads_weights: bool) -> Any:
    """Return the class of a stage of Ray, whose processes load the model that the job began with and no other.

    Ray's stages know no revision of a model on the hub, so each process gets the folder of the commit.
    """

    class Pinned(stage):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # vLLM reports its use to its makers otherwise
            place = settings.place
            if is_hub_name(place):
                place = hub_folder(place, settings.revision or "main")
            if "model" in kwargs:
                kwargs["model"] = place
            if "model_config_kwargs" in kwargs:
                kwargs["model_config_kwargs"] = kwargs["model_config_kwargs"] | {"model": place}
            if "chat_template_content_format" in kwargs:  # the parser of messages with pictures
                kwargs["chat_template_content_format"] = load_chat_template(place, settings).form
            super().__init__(*args, **kwargs)
            # After the files are read, so that those that were replaced meanwhile are found too.
            check_content_of_vllm(settings, content, reads_weights=reads_weights)

    Pinned.__name__ = Pinned.__qualname__ = stage.__name__  # Ray names the processes by it
    return Pinned


def _templated_class(stage: Any, settings: DescriptionSettings, content: str | None) -> Any:
    """Return the class of Ray's stage of chat templates, as `_pinned_class` does, whose prompts are whole.

    Ray's own hands a template the content of messages as it comes, and does not look at the prompt. Here a template
    gets the form that it takes, a prompt begins once, and a row whose words the template left out has an error.
    """
    pinned = _pinned_class(stage, settings, content, reads_weights=False)

    class Templated(pinned):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._template = ChatTemplate(self.processor, settings)

        async def udf(self, batch: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
            messages = {row[self.IDX_IN_BATCH_COLUMN]: self._template.in_form(row["messages"]) for row in batch}
            rows = [row | {"messages": messages[row[self.IDX_IN_BATCH_COLUMN]]} for row in batch]
            async for output in super().udf(rows):
                prompt = output["prompt"]
                is_whole = has_words(prompt, messages[output[self.IDX_IN_BATCH_COLUMN]])
                error = {} if is_whole else {ERROR: "the chat template of the model leaves out words of the request"}
                yield output | {"prompt": self._template.without_first(prompt)} | error

    Templated.__name__ = Templated.__qualname__ = stage.__name__
    return Templated


def engine_row(settings: DescriptionSettings, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Ray's stages need of a row. They pass over a row that asks nothing, since it has an error."""
    if row[PROMPT] is None:
        return {"messages": None, "sampling_params": None, ERROR: NOT_ASKED}
    content: Any = row[PROMPT]
    if row[PICTURE] is not None:
        url = "data:image/jpeg;base64," + base64.b64encode(row[PICTURE]).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": row[PROMPT]}]
    return {
        "messages": [{"role": "user", "content": content}],
        "sampling_params": {"temperature": 0.0, "max_tokens": settings.max_new_tokens},
        # Rows that have no error and share a batch with some that have one would get a null, which counts as one.
        ERROR: "",
        PICTURE: None,
    }


def written_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a row that vLLM has described. Ray keeps the whole row if it has an error."""
    return {name: row[name] for name in (ROWS, KNOWN, "generated_text", "num_input_tokens", "num_generated_tokens")}


def facts_there(values: dict[str, Any]) -> dict[str, Any]:
    """Return what a machine has of the engine, for the record of a job: versions, commit and content of the model.

    This is the work of a task. Its result has the name of the machine, and the error if the engine does not work there.
    """
    settings = DescriptionSettings(**values)
    facts: dict[str, Any] = {"machine": socket.gethostname()}
    try:
        check_source(settings)
        content = content_of(settings)
    except AsapError as error:
        return facts | {"error": str(error)}
    if is_hub_name(settings.place):
        facts["revision"] = find_commit(settings.place, settings.revision or "main")
    if content is not None:
        facts[CONTENT] = content
    with suppress(PackageNotFoundError):
        facts["vllm"] = version("vllm")
    return facts


def record_of(settings: DescriptionSettings) -> dict[str, Any]:
    """Return what decides the descriptions, as far as the settings say."""
    return {
        "engine": "vllm", "model": settings.source, "revision": settings.revision, "prompt": chat_prompt(settings),
        "max_new_tokens": settings.max_new_tokens, "max_side": settings.max_side, "temperature": 0.0, "seed": 0,
        "dtype": settings.dtype, "gpus": settings.gpus, "options": settings.vllm.options if settings.vllm else {},
    }  # fmt: skip

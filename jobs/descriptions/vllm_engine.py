"""Descriptions by vLLM, as stages of Ray Data: chat templates and pictures on CPUs, the model on GPUs.

vLLM batches by itself, over all rows that flow past, so it is no engine that gets one batch after another. This has not
been run with vLLM yet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from jobs.descriptions.engine import Failure, Usage
from jobs.descriptions.loading import check_vllm
from jobs.descriptions.prompts import chat_prompt, fill
from jobs.descriptions.replies import read_reply
from jobs.descriptions.settings import DescriptionSettings

if TYPE_CHECKING:
    from ray.data import Dataset

_ERROR = "__inference_error__"
"""Column in which Ray reports the failure of a row; empty for the others."""


def vllm_stages(settings: DescriptionSettings, engines: int = 1) -> Callable[[Dataset], Dataset]:
    """Return the stages that describe the rows of a dataset. Raises `ConfigError` if vLLM is not installed.

    A row has `picture`, a data: URL, for a caption, or `text` for an explanation, and any other columns. It keeps
    these, without `picture`, and gets the columns of `outcome_columns`. Ray must run.

    Args:
        settings: Settings of the engine.
        engines: Number of engines, with a GPU each.
    """
    check_vllm()
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    options = {"dtype": settings.dtype, "revision": settings.revision, "seed": 0}
    config = vLLMEngineProcessorConfig(
        model_source=settings.source,
        engine_kwargs={name: value for name, value in options.items() if value is not None},
        batch_size=settings.batch_size,
        concurrency=engines,
        should_continue_on_error=True,
        prepare_multimodal_stage={"enabled": settings.kind == "caption"},
    )
    processor = build_processor(config, preprocess=partial(engine_row, settings), postprocess=_keep)
    columns = partial(outcome_columns, settings)
    return lambda dataset: processor(dataset).map(columns)


def engine_row(settings: DescriptionSettings, row: dict[str, Any]) -> dict[str, Any]:
    """Return what the stages of Ray need of a row, and the row itself."""
    prompt = fill(chat_prompt(settings), row.get("text"))
    content: Any = prompt
    if settings.kind == "caption":
        content = [
            {"type": "image_url", "image_url": {"url": row["picture"]}},
            {"type": "text", "text": prompt},
        ]
    return {
        "messages": [{"role": "user", "content": content}],
        "sampling_params": {"temperature": 0.0, "max_tokens": settings.max_new_tokens},
        "asked": {name: value for name, value in row.items() if name != "picture"},
    }


def _keep(row: dict[str, Any]) -> dict[str, Any]:
    names = ("asked", "generated_text", "num_input_tokens", "num_generated_tokens")
    return {name: row[name] for name in names}


def outcome_columns(settings: DescriptionSettings, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with `description`, `is_cut`, `failure`, `failure_detail`, `input_tokens` and `output_tokens`."""
    usage = Usage(row.get("num_input_tokens") or 0, row.get("num_generated_tokens") or 0)
    if error := row.get(_ERROR):
        kind = "out_of_memory" if "OutOfMemory" in error else "model_error"
        description, is_cut, failure, detail = None, False, kind, " ".join(error.split())[:300]
    else:
        # Ray hands on no reason for the end, but a model that was stopped has used all its tokens.
        is_full = usage.output_tokens >= settings.max_new_tokens
        outcome = read_reply(row["generated_text"], is_cut=is_full, usage=usage)
        if isinstance(outcome, Failure):
            description, is_cut, failure, detail = None, False, outcome.kind, outcome.detail
        else:
            description, is_cut, failure, detail = outcome.text, outcome.is_cut, None, None
    return row["asked"] | {
        "description": description, "is_cut": is_cut, "failure": failure, "failure_detail": detail,
        "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens,
    }  # fmt: skip

"""Settings of an engine that describes pictures or texts. Values that cannot work are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, model_validator

import asap
from jobs.settings import Settings

Kind = Literal["caption", "explanation"]
DEMO = "demo"
"""Source of the captioner that ships with the library, as `demo` is the name of its model. `./demo` is a folder."""
EngineName = Literal["transformers", "openai", "vllm", "precomputed"]
_NEW_TOKENS = {"caption": 40, "explanation": 160}
_MOST_BATCHES = 16
"""Batches of a process at a time. They are lost with it."""
BATCHES_AT_VLLM = 8
"""Batches that a process of vLLM works on at a time: it fills its own batches with requests of all of them."""
_VLLM_OPTIONS = {
    "block_size", "cpu_offload_gb", "enable_chunked_prefill", "enable_prefix_caching", "enforce_eager",
    "gpu_memory_utilization", "kv_cache_dtype", "limit_mm_per_prompt", "max_model_len", "max_num_batched_tokens",
    "max_num_seqs", "mm_processor_kwargs", "quantization",
}  # fmt: skip
"""Arguments of vLLM that settings may give. No other: some run code, hold secrets, or are decided by the job."""
_DECISIVE = {"engine", "source", "revision", "prompt", "max_new_tokens", "batch_size", "max_side", "dtype", "attention"}


def _is_plain(address: str, parts: SplitResult) -> bool:
    """Return True if an address is printable and its port a number. `urlsplit` takes others."""
    try:
        return address.isprintable() and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def fill_kind(values: Any) -> Any:
    """Return settings of a job in which the engine `explanations` is one of explanations, if it says nothing else."""
    if isinstance(values, dict) and isinstance(values.get("explanations"), dict):
        return values | {"explanations": {"kind": "explanation"} | values["explanations"]}
    return values


def engines_by_kind(
    captions: DescriptionSettings | None, explanations: DescriptionSettings | None
) -> dict[str, DescriptionSettings]:
    """Return the engines of a job by what they write, in the order in which they work.

    Raises `ValueError` for an engine of the other kind.
    """
    engines: dict[str, DescriptionSettings] = {}
    for kind, engine in (("caption", captions), ("explanation", explanations)):
        if engine is None:
            continue
        if engine.kind != kind:
            raise ValueError(f"{kind}s cannot be made by an engine of the kind {engine.kind!r}. Leave `kind` out.")
        engines[kind] = engine
    return engines


class EndpointSettings(Settings):
    """An endpoint that speaks the API of OpenAI, and how it is asked."""

    address: str
    """Address of the API, such as https://host/v1. Pictures and texts are sent there."""
    key_env: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key, on every machine. None: the endpoint needs none."""
    concurrency: int = Field(default=16, ge=1, le=4096)
    """Requests that one process has under way at a time."""
    timeout_s: float = Field(default=60, gt=0)
    """Seconds for one try of a request."""
    deadline_s: float = Field(default=180, gt=0)
    """Seconds for a request with all its tries and the waits between them."""
    retries: int = Field(default=5, ge=0)
    """Tries after the first, of a request that may succeed later."""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Field of the request that holds `max_new_tokens`. Some models of OpenAI want the second."""
    temperature: float | None = Field(default=0, ge=0, le=2)
    """None: the field is not sent. Some models refuse it."""
    body: dict[str, Any] = Field(default={})
    """Further fields of each request, such as {"chat_template_kwargs": {"enable_thinking": false}}."""
    input_price: float = Field(default=0, ge=0)
    """Price of a million tokens that are sent, in any currency."""
    output_price: float = Field(default=0, ge=0)
    """Price of a million tokens that the model writes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname or not _is_plain(self.address, parts):
            raise ValueError("endpoint.address is no http:// or https:// address. Give one such as https://host/v1.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "endpoint.address has a user, a password or a query. It is written into records, so it may hold no "
                "secret. Put the key into the variable that endpoint.key_env names."
            )
        if self.key_env is not None and not re.fullmatch(r"[A-Za-z_]\w{0,99}", self.key_env, re.ASCII):
            raise ValueError("endpoint.key_env is not the name of an environment variable. Give the name, not the key.")
        return self


class VllmSettings(Settings):
    """The engine of vLLM."""

    gpus: int = Field(default=1, ge=1)
    """GPUs of one process, on one machine. The model is divided among them."""
    options: dict[str, Any] = Field(default={})
    """Further arguments of vLLM's engine, such as {"max_model_len": 4096}. They are recorded."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if unknown := sorted(self.options.keys() - _VLLM_OPTIONS):
            raise ValueError(
                f"vllm.options has {unknown[0]!r}, which is not among the arguments that may be given: "
                f"{', '.join(sorted(_VLLM_OPTIONS))}."
            )
        return self


class DescriptionSettings(Settings):
    """The engine that writes captions or explanations, its model, and its prompt."""

    engine: EngineName
    source: str
    """A model folder or hub name (`transformers`, `vllm`); the endpoint's name of a model (`openai`); a JSON, JSONL,
    CSV or Parquet file (`precomputed`). The folder of a model of `transformers`, and the file, may be at s3://."""
    kind: Kind = "caption"
    """A caption describes a picture, an explanation describes a text."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub. None: its main branch."""
    prompt: str | None = None
    """Prompt, with `{text}` where an explanation takes the text. None: the published one, or the task words of a model
    that has some (docs/descriptions.md)."""
    max_new_tokens: int = Field(default=40, ge=1)
    """Tokens that the model may write, without those of the prompt. 160 for explanations, if not given."""
    batch_size: int = Field(default=16, ge=1)
    """Requests that enter a model of `transformers` together. vLLM makes its own batches."""
    max_side: int = Field(default=512, ge=32)
    """Pixels. Larger pictures are shrunk before they travel to the captioner."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Arithmetic of a model of `transformers` or `vllm`. None: bfloat16 on a GPU and float32 on a CPU, or what vLLM
    chooses."""
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    """Implementation of attention of a model of `transformers`. None: what transformers chooses."""
    endpoint: EndpointSettings | None = None
    """The endpoint of the engine `openai`."""
    vllm: VllmSettings | None = None
    """The GPUs and further arguments of the engine `vllm`. None: one GPU, and no further arguments."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if isinstance(values, dict) and (limit := _NEW_TOKENS.get(str(values.get("kind", "caption")))):
            return {"max_new_tokens": limit} | values
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.engine == "openai" and self.endpoint is None:
            raise ValueError(
                'the engine openai needs an endpoint. Give its address: {"endpoint": {"address": "https://host/v1"}}.'
            )
        if self.engine != "openai" and self.endpoint is not None:
            raise ValueError(
                f"the engine {self.engine} has no endpoint. Leave `endpoint` out, or use the engine openai."
            )
        if self.engine != "vllm" and self.vllm is not None:
            raise ValueError(f"the engine {self.engine} takes no settings of vLLM. Leave `vllm` out.")
        if self.engine == "vllm" and self.attention is not None:
            raise ValueError("the engine vllm chooses its implementation of attention. Leave `attention` out.")
        if self.kind == "explanation" and self.prompt is not None and "{text}" not in self.prompt:
            raise ValueError("the prompt has no {text}, so the model would not see the text. Add it.")
        return self

    @property
    def place(self) -> str:
        """Folder of this machine, or name on the hub, where a model of `transformers` or `vllm` is found."""
        if self.source == DEMO and self.engine == "transformers":
            return str(Path(asap.__path__[0]) / "demo_captioner")
        return str(Path(self.source).expanduser()) if self.source.startswith("~") else self.source

    @property
    def gpus(self) -> int:
        """Whole GPUs that a process of the engine needs; 0 for an engine that shares GPUs, or needs none."""
        if self.engine != "vllm":
            return 0
        return self.vllm.gpus if self.vllm else 1

    @property
    def sees_pictures(self) -> bool:
        """True if the engine needs the pictures themselves."""
        return self.kind == "caption" and self.engine != "precomputed"

    def batches_at_a_time(self, batch_size: int) -> int:
        """Return how many batches a process describes at a time, so that an endpoint always has requests to answer."""
        if self.engine == "vllm":
            return BATCHES_AT_VLLM
        if self.endpoint is None:
            return 1
        return min(_MOST_BATCHES, 1 + -(-self.endpoint.concurrency // batch_size))

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Return the cost of tokens at the prices of the endpoint; 0 without one."""
        if self.endpoint is None:
            return 0
        return (input_tokens * self.endpoint.input_price + output_tokens * self.endpoint.output_price) / 1_000_000

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide what is written; how an endpoint is asked does not, but where does."""
        identity = self.model_dump(include=_DECISIVE)
        if self.endpoint:
            identity["endpoint"] = self.endpoint.model_dump(include={"address", "temperature", "body"})
        if self.vllm:
            identity["vllm"] = self.vllm.options
        return identity


def check_devices(engines: Iterable[DescriptionSettings], device: str) -> None:
    """Raise `ValueError` for an engine that cannot run on the device of its job: `auto`, `cpu` or `cuda`."""
    if device == "cpu" and any(engine.gpus for engine in engines):
        raise ValueError(
            "device is 'cpu', and the engine vllm runs on GPUs only. Give --device auto or cuda, or another engine."
        )

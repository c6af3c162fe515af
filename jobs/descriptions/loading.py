"""The engine of the settings, and what is checked of its source before anything is loaded."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from asap.errors import ConfigError
from asap.storage.files import list_files
from asap.storage.fingerprint import files_fingerprint
from asap.storage.location import Location
from jobs.descriptions.engine import Engine
from jobs.descriptions.model_files import is_hub_name, is_remote, remote_fingerprint, remote_weights_bytes
from jobs.descriptions.settings import DEMO, DescriptionSettings
from jobs.errors import InputNotFound

_SMALL_BYTES = 100_000_000


def check_source(settings: DescriptionSettings, *, is_here: bool = True) -> str:
    """Return a fingerprint of a model; for a name on the hub or at an endpoint, the name itself.

    Raises `InputNotFound`, `ConfigError` or `StorageError` if it cannot be used. Nothing is loaded. The files of a
    model in a bucket are listed; otherwise no network is used.

    Args:
        settings: Settings of the engine.
        is_here: False if machines of a cluster load the model. A folder that this machine lacks may be there: its path
            is the fingerprint then.
    """
    source = settings.source
    if settings.engine == "openai":
        from jobs.descriptions.endpoint_engine import read_key

        if not source.strip():
            raise InputNotFound(
                "the captioner '' is no model of an endpoint. Give the name that the endpoint has for it."
            )
        if settings.endpoint:
            read_key(settings.endpoint)
        return source
    if settings.engine == "vllm" and is_here:
        check_vllm()
    if settings.engine == "transformers" and is_remote(source):
        return remote_fingerprint(source)
    if not source or re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", source):
        places = (
            "neither a folder of this machine nor"
            if settings.engine == "vllm"
            else ("neither a folder of this machine, nor one at s3://, nor")
        )
        raise InputNotFound(f"the captioner {source!r} is {places} a name on the hub")
    source = settings.place
    if is_hub_name(source):
        return source if settings.revision is None else f"{source}@{settings.revision}"
    if not is_here and Path(source).is_absolute() and not Path(source).exists():
        return source
    if not (Path(source) / "config.json").is_file():
        raise InputNotFound(f"the captioner {source} is not a model folder: it has no config.json")
    return files_fingerprint(list_files(Location.parse(source)))


def is_small(settings: DescriptionSettings) -> bool:
    """Return True for a model that CPUs run fastest as many processes of one thread each (docs/descriptions.md).

    Its weights are at most 100 MB, so the memory of a machine holds as many as it has CPUs. The size of a model on the
    hub, or in a folder that this machine lacks, is not known: such a model counts as large.
    """
    if settings.engine != "transformers":
        return False
    if is_remote(settings.source):
        return remote_weights_bytes(settings.source) <= _SMALL_BYTES
    weights = [path.stat().st_size for path in Path(settings.place).glob("*.safetensors")]
    return 0 < sum(weights) <= _SMALL_BYTES


def located(settings: DescriptionSettings) -> DescriptionSettings:
    """Return the settings with the whole path of a folder or file of this machine: workers run in other folders."""
    source = settings.source
    if settings.engine == "precomputed":
        source = Location.parse(source).uri
    elif settings.engine in ("transformers", "vllm") and Path(source).expanduser().is_dir():
        is_demo = settings.engine == "transformers" and source == DEMO
        source = source if is_demo else str(Path(source).expanduser().absolute())
    return settings.model_copy(update={"source": source})


def check_vllm() -> None:
    """Raise `ConfigError` if vLLM is not installed."""
    if find_spec("vllm") is None:
        raise ConfigError("the engine vllm is not installed. Install the extra: pip install 'asap-ray[vllm]'.")


def load_engine(settings: DescriptionSettings, device: str | None = None) -> Engine:
    """Load the engine of the settings: `transformers` or `openai`.

    A file of descriptions is read by its own job (`PrecomputedEngine`), and `vllm` is stages of a dataset.

    Args:
        settings: Settings of the engine.
        device: Device of a model in this process. None: CUDA if there is any, else the CPU.
    """
    if settings.engine == "openai":
        from jobs.descriptions.endpoint_engine import EndpointEngine

        return EndpointEngine(settings)
    if settings.engine == "transformers":
        from jobs.descriptions.transformers_engine import TransformersEngine

        return TransformersEngine(settings, device)
    raise ConfigError(f"the engine {settings.engine} does not describe requests one batch at a time")

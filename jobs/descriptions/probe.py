"""One description of a gray picture or of a short text, with the real engine, before any work starts.

A wrong key, an endpoint that is down, and a folder that holds no model are errors then, in one sentence, and not a
failure of every pair. A model of transformers is probed in a process of its own, whose memory is free afterwards. If
machines of a cluster will describe, one of them is probed: it has the folder, the key and the GPU, or has them not.

    python -m jobs.descriptions.probe < settings.json > result.json
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from asap.errors import AsapError, ConfigError
from jobs.descriptions.engine import Failure, Outcome, Request
from jobs.descriptions.loading import check_source, load_engine
from jobs.descriptions.pinning import CONTENT, content_of
from jobs.descriptions.settings import DescriptionSettings

TEXT = "A woman in a red coat waves to a crowd in front of the town hall."
_HARMLESS = ("refusal", "loop")
"""Failures that a gray picture may deserve. They show that the engine works."""


@dataclass(frozen=True)
class Probe:
    """The outcome of the first request of an engine."""

    wrote: str
    input_tokens: int
    output_tokens: int
    record: dict[str, Any]
    """Model, prompt and settings that decide the descriptions, from the engine (`Engine.record`), and the fingerprint
    of its files."""
    machine: str | None = None
    """Name of the machine of a cluster that described. None: this machine."""

    def sentence(self, settings: DescriptionSettings) -> str:
        """Describe what was written, for a person."""
        of = "a gray picture" if settings.kind == "caption" else "a short text"
        tokens = f"{self.input_tokens} tokens in, {self.output_tokens} out" if self.input_tokens else ""
        if cost := settings.cost(self.input_tokens, self.output_tokens):
            tokens += f", which costs {1000 * cost:.3g} for a thousand"
        tokens = tokens and f" ({tokens})"
        where = "" if self.machine is None else f" on {self.machine}"
        return f"the captioner {settings.source} describes {of}{where}{tokens}: {self.wrote}"


def probe(settings: DescriptionSettings, device: str | None = None) -> Probe:
    """Describe a gray picture, or a short text for explanations. Raises `ConfigError` if that cannot be done.

    Args:
        settings: Settings of the engine, not of `precomputed` or `vllm`.
        device: Device of a model of transformers. None: CUDA if there is any, else the CPU.
    """
    if settings.engine != "transformers":
        return probe_here(settings, device)
    order = {"settings": settings.model_dump(), "device": device}
    command = [sys.executable, "-m", "jobs.descriptions.probe"]
    done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, check=False)  # noqa: S603
    answer = _last_object(done.stdout)
    if answer is None:
        said = " ".join(done.stderr.split())[-300:]
        raise ConfigError(
            f"the captioner {settings.source} cannot be used: its process ended with code {done.returncode} before it "
            f"had described a gray picture. {said}"
        )
    if "error" in answer:
        raise ConfigError(answer["error"])
    return Probe(**answer)


def start_probe(settings: DescriptionSettings, device: str | None, cpus: float, gpus: float) -> Any:
    """Start the work of `probe` on a machine of the running Ray, and return the reference that `read_probe` takes.

    Args:
        settings: Settings of the engine, not of `precomputed` or `vllm`.
        device: Device of a model of transformers. None: CUDA if there is any, else the CPU.
        cpus: CPUs of a process of the engine.
        gpus: GPUs of a process of the engine.
    """
    import ray

    # The process ends after its one task, so the memory of the model is free for the work.
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=1, max_retries=0)(_probe_there)
    return task.remote(settings.model_dump(), device)


def read_probe(settings: DescriptionSettings, reference: Any) -> Probe:
    """Return the outcome of `start_probe`. Raises `ConfigError` if the engine does not work there."""
    return Probe(**read_answer(settings, reference))


def read_answer(settings: DescriptionSettings, reference: Any) -> dict[str, Any]:
    """Return what a task of an engine found on its machine. Raises `ConfigError` if it died, or found an error.

    Args:
        settings: Settings of the engine.
        reference: The reference of the task's result, whose entries are `machine`, and `error` if there is one.
    """
    import ray

    try:
        answer = ray.get(reference)
    except ray.exceptions.RayError as error:  # the process died, or could not even import this package
        said = " ".join(str(error).split())[-300:]
        raise ConfigError(
            f"the captioner {settings.source} cannot be used: its process on a machine of the cluster ended before it "
            f"had described anything. {said}"
        ) from error
    if "error" in answer:
        raise ConfigError(
            f"{answer['error'].rstrip('.')}. This is so on {answer['machine']}, a machine of the cluster. Every "
            "machine that describes needs the folder, the key and the network."
        )
    return dict(answer)


def _probe_there(values: dict[str, Any], device: str | None) -> dict[str, Any]:
    """Do the work of `probe` in a task; return the fields of `Probe`, or the error, and the name of the machine."""
    settings = DescriptionSettings(**values)
    try:
        check_source(settings)
        found = asdict(probe_here(settings, device))
    except AsapError as error:
        found = {"error": str(error)}
    return found | {"machine": socket.gethostname()}


def probe_here(settings: DescriptionSettings, device: str | None = None) -> Probe:
    """Do the work of `probe` in this process."""
    engine = load_engine(settings, device)
    try:
        (outcome,) = engine.describe([request_of(settings)])
        content = content_of(settings)
        record = engine.record() | ({} if content is None else {CONTENT: content})
        return probe_of(settings, outcome, record)
    finally:
        engine.close()


def request_of(settings: DescriptionSettings) -> Request:
    """Return the request of a probe."""
    if settings.kind == "explanation":
        return Request("probe", "probe.jpg", None, TEXT)
    side = min(256, settings.max_side)
    return Request("probe", "probe.jpg", Image.new("RGB", (side, side), (128, 128, 128)))


def probe_of(settings: DescriptionSettings, outcome: Outcome, record: dict[str, Any]) -> Probe:
    """Return the probe with this outcome. Raises `ConfigError`, with advice, if the engine does not work."""
    usage = outcome.usage
    if not isinstance(outcome, Failure):
        return Probe(outcome.text, usage.input_tokens, usage.output_tokens, record)
    if outcome.kind in _HARMLESS:
        return Probe(outcome.detail, usage.input_tokens, usage.output_tokens, record)
    where = f" at {settings.endpoint.address}" if settings.endpoint else ""
    raise ConfigError(
        f"the captioner {settings.source}{where} does not work: {outcome.detail}.{_advice(settings, outcome)}"
    )


def _advice(settings: DescriptionSettings, failure: Failure) -> str:
    """Return what to do about the failure of a probe, after a blank; nothing if nobody knows."""
    if failure.kind == "not_allowed" and settings.endpoint:
        return (
            f" Check the key in the environment variable {settings.endpoint.key_env}."
            if settings.endpoint.key_env
            else " The endpoint wants a key: name its environment variable in endpoint.key_env."
        )
    return {
        "unreachable": " Check the address, and that the endpoint runs.",
        "timeout": " Check that the endpoint runs, or raise endpoint.timeout_s.",
        "bad_answer": " Check that the address is that of an API, and ends as its users say, often with /v1.",
        "rejected": " Check the name of the model, and the settings of the endpoint.",
        "model_error": " Lower max_new_tokens if the model writes no texts of this length, or give another model.",
        "special_tokens": " Give another prompt, or another model.",
        "empty": " Give another prompt, or another model.",
    }.get(failure.kind, "")


def _last_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object in the last line: libraries may have printed others before it."""
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        return found if isinstance(found, dict) else None
    return None


def main() -> None:
    """Probe the settings that stand on the standard input, and print the result or its error as a line of JSON."""
    order = json.loads(sys.stdin.read())
    try:
        answer = asdict(probe_here(DescriptionSettings(**order["settings"]), order["device"]))
    except AsapError as error:
        answer = {"error": str(error)}
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


if __name__ == "__main__":
    main()

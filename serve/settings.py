"""Settings of the server. Settings that cannot work are rejected when they are built."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from asap.preprocessing.images import DEFAULT_LIMITS, ImageLimits
from asap.preprocessing.words import MAX_CHARACTERS, MIN_TEXT_READ
from asap.storage.prefixes import is_below, prefix_problem

_PREFIX = re.compile(r"(s3|https)://[^/@\s\\]+/\S*")

LOGGING = {"log_level": "WARNING", "enable_access_log": False}
"""Ray logs only warnings and errors, and no line for each request: the API writes one."""
ANSWER_WITHIN_S = 5.0
"""Seconds within which a process of the API must answer.

One that does not counts as busy when the server stops, and its metrics are left out of /metrics.
"""


ANY_KEY = "*"
"""Name, among those of keys, that stands for all others, and for callers of a server without keys."""


class JobRules(BaseModel):
    """Rules for the jobs of a key: what they may read, write and run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[str, ...] = ()
    """Prefixes of S3, with a slash at the end, below which inputs and the pictures that they name may lie."""
    outputs: tuple[str, ...] = ()
    """Prefixes of S3, with a slash at the end, below which `out` may lie."""
    models: tuple[str, ...] = ("demo",)
    """Models, captioners and explainers by their names, or prefixes of S3 with a slash at the end."""
    max_under_way: int = Field(default=2, ge=1)
    """Jobs of the key that may be under way at once."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        folders = [model for model in self.models if model.startswith("s3://") and model.endswith("/")]
        for prefix in (*self.inputs, *self.outputs, *folders):
            if problem := prefix_problem(prefix):
                raise ValueError(f"the prefix {prefix!r} {problem}")
        return self


class JobSettings(BaseModel):
    """Jobs over HTTP. They run as `asap scan` on the Ray cluster of the server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    records: str
    """Folder at s3:// for a small file about each job. All processes of the API share it, and no key may read it."""
    keys: dict[str, JobRules] = {}
    """Rules by the name of the key; those of `*` are for all others, and for callers of a server without keys."""
    dashboard: str | None = None
    """Address of the cluster's dashboard, which has Ray's Jobs API. None: the one that the cluster names."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if problem := prefix_problem(f"{self.records.removesuffix('/')}/"):
            raise ValueError(f"records {self.records!r} {problem}")
        for name, rules in self.keys.items():
            prefixes = (*rules.inputs, *rules.outputs)
            folder = f"{self.records.removesuffix('/')}/"
            if any(is_below(prefix, [folder]) for prefix in prefixes):
                raise ValueError(
                    f"records {self.records!r} has a prefix of {name!r} in it, whose jobs could read or write the "
                    "records. Choose a folder beside the prefixes."
                )
            if is_below(self.records, prefixes):
                raise ValueError(
                    f"records {self.records!r} is below a prefix of {name!r}, whose jobs could read or write it. "
                    "Choose a folder beside the prefixes."
                )
        if self.dashboard is not None and not re.fullmatch(r"https?://[^/@\s]+/?", self.dashboard):
            raise ValueError(f"dashboard {self.dashboard!r} is not http://HOST:PORT")
        return self


class ServeSettings(BaseModel):
    """The settings. They are frozen, and a misspelled name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "demo"
    """A model folder, on this machine or at s3://, or `demo`, the model that ships with the package."""
    device: str = "auto"
    """Device of the detectors: `auto`, `cpu` or `cuda`. `auto`: a GPU if the detectors have one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the layers. `auto`: bfloat16 on GPUs that support it, else float32."""
    host: str = "127.0.0.1"
    """Address to listen on. Any address but loopback needs keys."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""

    max_image_bytes: int = Field(default=16 * 2**20, ge=1)
    """Bytes of an encoded picture."""
    max_image_pixels: int = Field(default=DEFAULT_LIMITS.max_pixels, ge=1)
    """Pixels of a picture, checked before it is decoded."""
    max_text_chars: int = Field(default=MAX_CHARACTERS, ge=1, le=MAX_CHARACTERS)
    """Code points of a text. A long text is analyzed in many passes; the predictor accepts no more than the default."""
    min_text_read: float = Field(default=MIN_TEXT_READ, ge=0, le=1)
    """Share of a text's characters that the model must be able to read. A pair with less is refused with 400."""
    max_batch_items: int = Field(default=32, ge=1)
    """Pairs of one batch request."""
    max_batch_bytes: int = Field(default=64 * 2**20, ge=1)
    """Bytes of the body of a batch."""
    max_in_flight: int = Field(default=64, ge=1)
    """Requests that may be read, decoded or waiting at once. Another one gets 429."""
    max_bytes_in_flight: int = Field(default=512 * 2**20, ge=1)
    """Bytes of the bodies of those requests together. A request beyond them gets 429."""
    wait_s: float = Field(default=2, gt=0)
    """Target latency in seconds under overload, measured from when a request is complete.

    When the median exceeds it, fewer requests are admitted concurrently.
    """
    max_queued: int = Field(default=256, ge=1)
    """Pairs that may wait for a detector in one API process. Another one gets 429. Long texts count separately."""
    deadline_s: float = Field(default=30, gt=0)
    """Seconds for one request, from its first byte. Work that nobody waits for any more is not done."""
    decoders: int = Field(default=2, ge=1)
    """Processes that decode pictures."""
    decode_timeout_s: float = Field(default=10, gt=0)
    """Seconds to decode one picture. Then its process is killed, and another is started."""

    api_replicas: int = Field(default=1, ge=1)
    """Processes of the API. Each has its own decoders, `max_in_flight` and `key_rate`."""
    min_replicas: int = Field(default=1, ge=1)
    """Detectors that run at least."""
    max_replicas: int = Field(default=2, ge=1)
    """Detectors that run at most."""
    upscale_delay_s: float = Field(default=5, ge=0)
    """Seconds of high load before another detector is started."""
    downscale_delay_s: float = Field(default=120, ge=0)
    """Seconds of low load before a detector is stopped."""
    drain_s: float = Field(default=60, gt=0)
    """Seconds in which a replica that shuts down may finish its work. At least `deadline_s`."""
    batch_size: int = Field(default=16, ge=1)
    """Pairs in one forward pass of the model, each with one part of its text."""
    batch_wait_s: float = Field(default=0.005, ge=0)
    """Seconds that a pair waits at most for others to share its batch."""
    detector_cpus: float = Field(default=1, gt=0)
    """CPUs of one detector. It has as many threads, and at least one."""
    detector_gpus: float = Field(default=0, ge=0)
    """GPUs of one detector."""

    uri_prefixes: tuple[str, ...] = ()
    """Beginnings of the s3:// and https:// addresses that pictures may be fetched from. By default there are none."""
    cors_origins: tuple[str, ...] = ()
    """Origins of other sites whose pages may call the API. By default there are none."""
    keys_file: str | None = None
    """A file of hashed keys (`serve.api.callers.keys`), which is read anew when it changes.

    With None, the keys are read once from `ASAP_KEYS`, if it is set.
    """
    key_rate: float = Field(default=20, gt=0)
    """Pairs a second that one key may send. A long text counts once for each pass of the model that it takes."""
    key_burst: int = Field(default=64, ge=1)
    """Pairs that one key may send at once after a pause."""
    jobs: JobSettings | None = None
    """Jobs over HTTP (docs/serving.md). With None, the routes of jobs answer 403."""
    audit_file: str | None = None
    """A file to which each process of the API appends a line of JSON for each request. With None: its stderr."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}")
        if self.max_batch_items > self.key_burst:
            raise ValueError(
                f"a batch of max_batch_items {self.max_batch_items} is more than a key's key_burst {self.key_burst}"
            )
        if self.wait_s >= self.deadline_s:
            raise ValueError(f"wait_s {self.wait_s:g} is not less than deadline_s {self.deadline_s:g}")
        if self.device.startswith("cuda") and not self.detector_gpus:
            raise ValueError(f"device {self.device} needs a GPU for each detector. Set detector_gpus too, as to 1.")
        if self.drain_s < self.deadline_s:
            raise ValueError(
                f"drain_s {self.drain_s:g} is less than deadline_s {self.deadline_s:g}. "
                "A server that stops would cut off requests that it has accepted."
            )
        if self.max_bytes_in_flight < (most := self.max_any_body_bytes):
            raise ValueError(f"max_bytes_in_flight {self.max_bytes_in_flight} is less than a request may have, {most}")
        for prefix in self.uri_prefixes:
            if not _PREFIX.fullmatch(prefix):
                raise ValueError(f"uri_prefixes {prefix!r} is not s3://BUCKET/… or https://HOST/…")
        for origin in self.cors_origins:
            if not re.fullmatch(r"https?://[^/\s*]+", origin):
                raise ValueError(f"cors_origins {origin!r} is not https://HOST, or http://HOST")
        ImageLimits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_pixels)
        return self

    @property
    def limits(self) -> ImageLimits:
        """The limits of one picture."""
        return ImageLimits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_pixels)

    @property
    def max_body_bytes(self) -> int:
        """The largest body of a request for one pair, in bytes.

        It has room for the picture in base64, the text as escaped JSON, and the rest of a form or of JSON.
        """
        return self.max_image_bytes * 4 // 3 + 12 * self.max_text_chars + 2**16

    @property
    def max_any_body_bytes(self) -> int:
        """The largest body of any request, in bytes."""
        return max(self.max_body_bytes, self.max_batch_bytes)


def is_loopback(host: str) -> bool:
    """Return True if an address or name can be reached only from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

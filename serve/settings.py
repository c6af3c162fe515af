"""What the server can be told; what cannot work is refused when it is built."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from asap.preprocessing.images import DEFAULT_LIMITS, ImageLimits
from asap.preprocessing.words import MAX_CHARACTERS

_PREFIX = re.compile(r"(s3|https)://[^/@\s\\]+/\S*")


class ServeSettings(BaseModel):
    """Frozen, and strict about names: a setting that is misspelt is an error, not ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "demo"
    """A model folder, here or at s3://; or `demo`, the model that ships."""
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    host: str = "127.0.0.1"
    """To listen on; anything but loopback needs keys."""
    port: int = Field(default=8000, ge=1, le=65535)

    max_image_bytes: int = Field(default=16 * 2**20, ge=1)
    max_image_pixels: int = Field(default=DEFAULT_LIMITS.max_pixels, ge=1)
    max_text_chars: int = Field(default=MAX_CHARACTERS, ge=1, le=MAX_CHARACTERS)
    """Code points of a text: a long one is analysed in many passes. The predictor reads no more."""
    max_batch_items: int = Field(default=32, ge=1)
    max_batch_bytes: int = Field(default=64 * 2**20, ge=1)
    """Of the body of a batch."""
    max_in_flight: int = Field(default=64, ge=1)
    """Requests that are read, decoded or waiting at once; one more is answered 429."""
    max_bytes_in_flight: int = Field(default=512 * 2**20, ge=1)
    """Of the bodies of those requests together; one more is answered 429."""
    wait_s: float = Field(default=2, gt=0)
    """What an answer may come to take, once its request is there, where more is asked than can be judged: beyond, fewer
    are let in at once."""
    max_queued: int = Field(default=256, ge=1)
    """Pairs that wait in one process of the API for a detector, those of long texts apart; one more is answered 429."""
    deadline_s: float = Field(default=30, gt=0)
    """For one request, from its first byte; what nobody waits for any more is not computed."""
    decoders: int = Field(default=2, ge=1)
    """Processes that decode pictures."""
    decode_timeout_s: float = Field(default=10, gt=0)
    """For one picture; its process is then killed, and another started."""

    api_replicas: int = Field(default=1, ge=1)
    """Processes that take requests, each with its own decoders, `max_in_flight` and `key_rate`."""
    min_replicas: int = Field(default=1, ge=1)
    """Detectors; so is `max_replicas`."""
    max_replicas: int = Field(default=2, ge=1)
    upscale_delay_s: float = Field(default=5, ge=0)
    downscale_delay_s: float = Field(default=120, ge=0)
    drain_s: float = Field(default=60, gt=0)
    """A replica that is going down may finish its work for so long."""
    batch_size: int = Field(default=16, ge=1)
    """Pairs that the model sees at once, each with one pass of its text."""
    batch_wait_s: float = Field(default=0.005, ge=0)
    """A pair waits at most so long for others to be judged with it."""
    detector_cpus: float = Field(default=1, gt=0)
    """Of one detector; its threads are as many, at least one."""
    detector_gpus: float = Field(default=0, ge=0)

    uri_prefixes: tuple[str, ...] = ()
    """s3:// and https:// addresses that pictures may be fetched from, by how they begin; none."""
    cors_origins: tuple[str, ...] = ()
    """Other sites whose pages may call the API; none."""
    keys_file: str | None = None
    """A file of hashed keys (`serve.api.keys`); None: `ASAP_KEYS`, if it is set."""
    key_rate: float = Field(default=20, gt=0)
    """Pairs a second that one key may send; a long text counts for each pass of the model that it takes."""
    key_burst: int = Field(default=64, ge=1)
    """Pairs that one key may send at once after a pause."""

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
        """Of one picture."""
        return ImageLimits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_pixels)

    @property
    def max_body_bytes(self) -> int:
        """Of a request for one pair: a picture in base64, its text (escaped JSON at its longest), and a little."""
        return self.max_image_bytes * 4 // 3 + 12 * self.max_text_chars + 2**16

    @property
    def max_any_body_bytes(self) -> int:
        """Of the largest request."""
        return max(self.max_body_bytes, self.max_batch_bytes)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address or name."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

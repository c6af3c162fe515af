"""A small client of the API: one call, with retries where the server says that another try may help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from asap.errors import AsapError
from asap.finding import Finding, Word

_TRIES = 5
_TIMEOUT_S = 60
_PLAIN_CHARS = 200
"""Of an answer that is no JSON, so many are told."""


class ServerError(AsapError):
    """A server that does not answer, or refused the pair."""


class Client:
    """Of one server. A request that is refused for want of room (429, 503) is sent again, as Retry-After says."""

    def __init__(self, url: str, key: str | None = None, tries: int = _TRIES) -> None:
        self._url = url.rstrip("/")
        self._session = requests.Session()
        retry = Retry(
            total=tries - 1, backoff_factor=0.5, status_forcelist=(429, 503), allowed_methods=("POST",),
            raise_on_status=False,
        )  # fmt: skip
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))
        if key:
            self._session.headers["Authorization"] = f"Bearer {key}"

    def detect(self, image: bytes, text: str) -> dict[str, Any]:
        """The API's answer for one pair. Raises `ServerError`, with the server's own words where it has any."""
        try:
            answer = self._session.post(
                f"{self._url}/v1/detect", files={"image": image}, data={"text": text}, timeout=_TIMEOUT_S
            )
        except requests.RequestException as error:
            raise ServerError(f"{self._url} does not answer: {error}") from error
        try:
            told: Any = answer.json()
        except json.JSONDecodeError as error:
            raise ServerError(f"{self._url} answered {answer.status_code}, {_plain(answer)}") from error
        if not answer.ok:
            reason = told.get("error") if isinstance(told, dict) else None
            message = reason["message"] if isinstance(reason, dict) and "message" in reason else answer.reason
            raise ServerError(f"{self._url} answered {answer.status_code}: {message}")
        found: dict[str, Any] = told
        return found


def _plain(answer: requests.Response) -> str:
    """What an answer without JSON means: where it is refused, Ray Serve, a proxy or another server speaks."""
    if answer.ok:
        return "and no JSON; is it asap serve?"
    said = " ".join(answer.text[:_PLAIN_CHARS].split())
    return f"not in the API's words: {said or answer.reason}"


def read_image(path: str) -> bytes:
    """A picture of this machine. Raises `ServerError`, before anything is sent."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ServerError(f"the image {path!r} cannot be read: {error.strerror}") from error


def finding_of(answer: dict[str, Any]) -> Finding:
    """The API's answer as a `Finding`, without what the API does not tell (`raw_box_px`, `word_scores`)."""
    evidence, box = answer["evidence"], answer["evidence"]["box_px"]
    return Finding(
        verdict=answer["verdict"],
        score=answer["score"],
        types={name: told["score"] for name, told in answer["types"].items()},
        flagged_types=[name for name, told in answer["types"].items() if told["flagged"]],
        box_px=(box["x0"], box["y0"], box["x1"], box["y1"]) if box else None,
        words=[Word(**word) for word in evidence["words"]],
        word_scores=None,
        width=answer["input"]["width"],
        height=answer["input"]["height"],
        image_sha256=answer["input"]["sha256"],
        model_id=answer["model_id"],
        policy_id=answer["policy_id"],
        warnings=answer["warnings"],
    )

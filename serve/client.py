"""A small client of the API: one call, which is repeated if the server says that this may help."""

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
_QUOTED_CHARS = 200
"""Characters that are quoted of a response that is not JSON."""
_NEWER = ("text_read", "familiarity", "familiarity_image", "familiarity_text", "familiarity_id", "limits")
"""Fields of a response that a server of an earlier version does not send."""


class ServerError(AsapError):
    """A server that does not answer, or that refused the pair."""


class Client:
    """A client of one server. A request that gets 429 or 503 is sent again, after the time in Retry-After.

    Args:
        url: The server's address.
        key: The API key, if the server needs one.
        tries: Times that a request is sent at most.
    """

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
        """Return the API's response for one pair. Raises `ServerError` with the server's message, if it sent one."""
        try:
            response = self._session.post(
                f"{self._url}/v1/detect", files={"image": image}, data={"text": text}, timeout=_TIMEOUT_S
            )
        except requests.RequestException as error:
            raise ServerError(f"{self._url} does not answer: {error}") from error
        try:
            content: Any = response.json()
        except json.JSONDecodeError as error:
            if response.ok:
                problem = "without JSON; is it asap serve?"
            else:  # Ray Serve, a proxy or another server refused the request
                text = " ".join(response.text[:_QUOTED_CHARS].split())
                problem = f"without the API's JSON: {text or response.reason}"
            raise ServerError(f"{self._url} answered {response.status_code} {problem}") from error
        if not response.ok:
            reason = content.get("error") if isinstance(content, dict) else None
            message = reason["message"] if isinstance(reason, dict) and "message" in reason else response.reason
            raise ServerError(f"{self._url} answered {response.status_code}: {message}")
        result: dict[str, Any] = content
        return result


def read_image(path: str) -> bytes:
    """Return the bytes of a picture on this machine. Raises `ServerError` if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ServerError(f"the image {path!r} cannot be read: {error.strerror}") from error


def finding_of(answer: dict[str, Any]) -> Finding:
    """Return the API's response as a `Finding`. The API does not return `raw_box_px` and `word_scores`.

    A server of an earlier version lacks the newer fields, which get the defaults of a `Finding`.
    """
    evidence, box = answer["evidence"], answer["evidence"]["box_px"]
    newer = {name: answer[name] for name in _NEWER if name in answer}
    return Finding(
        verdict=answer["verdict"],
        score=answer["score"],
        types={name: type_score["score"] for name, type_score in answer["types"].items()},
        flagged_types=[name for name, type_score in answer["types"].items() if type_score["flagged"]],
        box_px=(box["x0"], box["y0"], box["x1"], box["y1"]) if box else None,
        words=[Word(**word) for word in evidence["words"]],
        word_scores=None,
        unfamiliar_parts=tuple(answer.get("unfamiliar_parts", ())),
        width=answer["input"]["width"],
        height=answer["input"]["height"],
        image_sha256=answer["input"]["sha256"],
        model_id=answer["model_id"],
        policy_id=answer["policy_id"],
        warnings=answer["warnings"],
        **newer,
    )

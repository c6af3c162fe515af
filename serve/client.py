"""A small client of the API. It needs neither torch nor Ray.

from serve.client import Client

with Client("http://127.0.0.1:8000", key="asap_…") as client:
    found = client.detect("photo.jpg", "A smiling minister opens the bridge")
    print(found.verdict, found.score, found.evidence.words)
    job = client.submit_job(input="s3://pictures/may.jsonl", out="s3://scans/desk")
    client.watch_job(job.id, lambda job: print(job.state, job.counts))
    flagged = list(client.job_results(job.id, verdict="manipulated"))
"""

from __future__ import annotations

import base64
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import requests
from pydantic import BaseModel, ValidationError
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from asap.errors import AsapError, ConfigError
from asap.finding import Finding, Word
from serve.job_schemas import Job, JobList, JobRequest
from serve.schemas import LATER_CODES, BatchResponse, Detection, ModelList, ServerLimits

_TRIES = 5
_TIMEOUT_S = 60.0
_CONNECT_S = 10.0
_MOST_WAIT_S = 60
"""Seconds that are waited at most between two tries, whatever the server asks for."""
_RETRIED = (429, 503)
"""Statuses after which a request is sent again, as often as `tries` allows."""
_KEY = re.compile(r"[!-~]+")
"""Keys that a header can carry."""
_QUOTED_CHARS = 200
"""Characters that are quoted of a response that is not JSON."""
_REMOTE = ("s3://", "https://")
Image = bytes | str | Path
"""A picture: its bytes, its path on this machine, or an address that the server fetches it from."""
_Answer = TypeVar("_Answer", bound=BaseModel)


class ServerError(AsapError):
    """A server that does not answer, or that refused the request.

    Args:
        message: The message.
        status: The status of the response, if there was one.
        error: The error in the response, if it was the API's: `code`, `param` and `request_id`.
    """

    def __init__(self, message: str, status: int | None = None, error: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code: str | None = (error or {}).get("code")
        self.param: str | None = (error or {}).get("param")
        self.request_id: str | None = (error or {}).get("request_id")


class Client:
    """A client of one server. Every method raises `ServerError` with the server's message, if it sent one.

    A request that gets 429 or 503, or no response, is sent again, after the time in Retry-After. It has the same
    `Idempotency-Key` each time, so that it is neither judged nor charged twice. If the server still works on the first
    one (409), its response is asked for until `timeout_s` has passed.

    Args:
        url: The server's address.
        key: The API key, if the server needs one. Space around it is left out.
        tries: Times that a request is sent at most, those apart that ask for a response in progress.
        timeout_s: Seconds to wait for a response.

    Raises `ConfigError` for a key that no header can carry.
    """

    def __init__(self, url: str, key: str | None = None, tries: int = _TRIES, timeout_s: float = _TIMEOUT_S) -> None:
        self._url = url.rstrip("/")
        self._timeout = (_CONNECT_S, timeout_s)
        self._session = requests.Session()
        retry = Retry(
            total=tries - 1, backoff_factor=0.5, status_forcelist=_RETRIED, allowed_methods=("GET", "POST"),
            raise_on_status=False, retry_after_max=_MOST_WAIT_S,
        )  # fmt: skip
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))
        # A function, without a key too, because requests would else send what a .netrc has for the host.
        self._session.auth = _bearer(key.strip()) if key else lambda request: request

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def detect(self, image: Image, text: str, *, draw: bool = False) -> Detection:
        """Return the result for one pair.

        Args:
            image: The picture.
            text: The text that goes with it.
            draw: True to get the picture with its evidence in `evidence.image`.
        """
        query = {"evidence": "image"} if draw else None
        if isinstance(image, str) and image.startswith(_REMOTE):
            return self._post("/v1/detect", Detection, params=query, json={"uri": image, "text": text})
        sent: dict[str, Any] = {"files": {"image": _bytes_of(image)}, "data": {"text": text}}
        return self._post("/v1/detect", Detection, params=query, **sent)

    def detect_batch(self, pairs: Sequence[tuple[Image, str]], ids: Sequence[str] | None = None) -> BatchResponse:
        """Return an item for each pair, in the order of the pairs; one that fails does not affect others.

        Args:
            pairs: Pictures and their texts, at most `limits().max_batch_items`.
            ids: Your own names of the pairs, which their items have as `custom_id`.
        """
        items = [_item_of(image, text) for image, text in pairs]
        for item, name in zip(items, ids or (), strict=ids is not None):
            item["custom_id"] = name
        return self._post("/v1/detect/batch", BatchResponse, json={"items": items})

    def models(self) -> ModelList:
        """Return the models that answer there."""
        return self._send("GET", "/v1/models", ModelList)

    def limits(self) -> ServerLimits:
        """Return what a request may be, and what the key may send now."""
        return self._send("GET", "/v1/limits", ServerLimits)

    def submit_job(self, request: JobRequest | None = None, *, name: str | None = None, **options: Any) -> Job:
        """Submit a scan in bulk, and return the job.

        Args:
            request: The request. None: it is made of `options`.
            name: The `Idempotency-Key`. With the name of an earlier request, its job is returned. None: a new one.
            options: Fields of a `JobRequest`, such as `input` and `out`.

        Raises `ConfigError` for options that no job has.
        """
        if request is None:
            try:
                request = JobRequest(**options)
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"]))
                raise ConfigError(f"the job option {field} cannot work: {first['msg']}.") from error
        return self._post("/v1/jobs", Job, name=name, json=request.model_dump(exclude_defaults=True))

    def jobs(self, limit: int = 100) -> list[Job]:
        """Return the newest jobs that the key may see."""
        return self._send("GET", "/v1/jobs", JobList, params={"limit": limit}).jobs

    def job(self, id_: str) -> Job:
        """Return a job as it is now."""
        return self._send("GET", f"/v1/jobs/{id_}", Job)

    def cancel_job(self, id_: str) -> Job:
        """Ask a job to stop, and return it as it is then. It ends soon after; `watch_job` waits for that."""
        return self._post(f"/v1/jobs/{id_}/cancel", Job)

    def watch_job(self, id_: str, on_change: Callable[[Job], None] = lambda job: None, every_s: float = 2) -> Job:
        """Wait until a job ends, and return it.

        Args:
            id_: The id of the job.
            on_change: Receives the job at the start, and whenever its state or a count has changed.
            every_s: Seconds between two looks.

        Raises `ServerError` if the process of the job has probably died.
        """
        shown = None
        while True:
            job = self.job(id_)
            if shown is None or (job.state, job.counts, job.phase) != (shown.state, shown.counts, shown.phase):
                on_change(job)
                shown = job
            if job.has_ended:
                return job
            if job.silent:
                raise ServerError(f"job {id_} gives no sign of life: {job.note}")
            time.sleep(every_s)

    def job_results(self, id_: str, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield the rows of a job that pass, a page at a time.

        Args:
            id_: The id of the job.
            filters: Fields of the query: `verdict`, `type`, `code` and `id` with one value or a list, `min_score`,
                `max_score`, `columns` as `"A,B"`, and `limit`, the rows of a page.
        """
        return self._rows(f"/v1/jobs/{id_}/results", filters)

    def job_errors(self, id_: str, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield the failed rows of a job; `filters` may have `code` and `limit`, as in `job_results`."""
        return self._rows(f"/v1/jobs/{id_}/errors", filters)

    def _rows(self, path: str, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
        next_: str | None = path
        while next_ is not None:
            response = self._response("GET", next_, params=query)
            if not response.ok:
                self._content(response)
            for line in response.content.splitlines():
                yield json.loads(line)
            next_, query = response.links.get("next", {}).get("url"), {}

    def _request(self, method: str, path: str, **sent: Any) -> requests.Response:
        """Send a request once, but for the tries. A redirect is not followed.

        It may lead to another host, which would get the pair, and the password that a .netrc has for it.
        """
        response = self._session.request(
            method, f"{self._url}{path}", timeout=self._timeout, allow_redirects=False, **sent
        )
        if response.is_redirect:
            status, target = response.status_code, response.headers["Location"]
            raise ServerError(
                f"{self._url} answered {status}, a redirect to {target!r}, which is not followed. Give the address of "
                "the API itself.",
                status,
            )
        return response

    def _post(self, path: str, kind: type[_Answer], *, name: str | None = None, **sent: Any) -> _Answer:
        return self._send("POST", path, kind, headers={"Idempotency-Key": name or uuid.uuid4().hex}, **sent)

    def _send(self, method: str, path: str, kind: type[_Answer], **sent: Any) -> _Answer:
        response = self._response(method, path, **sent)
        content = self._content(response)
        try:
            return kind.model_validate(content, context=LATER_CODES)
        except ValidationError as error:
            status = response.status_code
            message = f"{self._url} answered {status} with JSON of another form; is it asap serve of this version?"
            raise ServerError(message, status) from error

    def _response(self, method: str, path: str, **sent: Any) -> requests.Response:
        """Return the response to a request, once the same one is no longer in progress."""
        end = time.monotonic() + self._timeout[1]
        try:
            response = self._request(method, path, **sent)
            while _is_in_progress(response) and time.monotonic() < end:
                asked = response.headers.get("Retry-After", "")
                time.sleep(min(int(asked) if re.fullmatch("[0-9]{1,3}", asked) else 1, _MOST_WAIT_S))
                response = self._request(method, path, **sent)
        except requests.RequestException as error:
            raise ServerError(f"{self._url} does not answer: {error}") from error
        return response

    def _content(self, response: requests.Response) -> Any:
        """Return the JSON of a response. Raises `ServerError` for any other response, and for that of an error."""
        status = response.status_code
        try:
            content: Any = response.json()
        except requests.JSONDecodeError as error:
            if response.ok:
                problem = "without JSON; is it asap serve?"
            else:  # Ray Serve, a proxy or another server refused the request
                text = " ".join(response.text[:_QUOTED_CHARS].split())
                problem = f"without the API's JSON: {text or response.reason}"
            raise ServerError(f"{self._url} answered {status} {problem}", status) from error
        if not response.ok:
            found = content.get("error") if isinstance(content, dict) else None
            reason = found if isinstance(found, dict) and "message" in found else {"message": response.reason}
            raise ServerError(f"{self._url} answered {status}: {reason['message']}", status, reason)
        return content


def _is_in_progress(response: requests.Response) -> bool:
    """Return True for the refusal of a request because the same one, whose response was lost, is in progress.

    Other refusals with this status are about jobs, and waiting does not help.
    """
    if response.status_code != requests.codes.conflict:
        return False
    try:
        return not str(response.json()["error"]["code"]).startswith("job_")
    except (requests.JSONDecodeError, KeyError, TypeError):
        return True


def _bearer(key: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """Return a function that adds a key to a request. Raises `ConfigError`, without the key, if it is malformed."""
    if not _KEY.fullmatch(key):
        raise ConfigError(
            "the API key is empty, or has a character that no key has, such as a space or a line break. Copy it again, "
            "as `asap serve --new-key` printed it."
        )

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {key}"
        return request

    return authorize


def _item_of(image: Image, text: str) -> dict[str, str]:
    """Return a pair as an item of a batch."""
    if isinstance(image, str) and image.startswith(_REMOTE):
        return {"uri": image, "text": text}
    return {"image": base64.b64encode(_bytes_of(image)).decode(), "text": text}


def _bytes_of(image: Image) -> bytes:
    """Return the bytes of a picture on this machine. Raises `ServerError` if it cannot be read."""
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise ServerError(f"the image {str(image)!r} cannot be read: {error.strerror}") from error


def finding_of(answer: Detection) -> Finding:
    """Return the API's response as a `Finding`. The API does not return `raw_box_px` and `word_scores`."""
    box = answer.evidence.box_px
    return Finding(
        verdict=answer.verdict,
        score=answer.score,
        types={name: type_score.score for name, type_score in answer.types.items()},
        flagged_types=[name for name, type_score in answer.types.items() if type_score.flagged],
        box_px=(box.x0, box.y0, box.x1, box.y1) if box else None,
        words=[Word(**word.model_dump()) for word in answer.evidence.words],
        word_scores=None,
        text_read=answer.text_read,
        familiarity=answer.familiarity,
        familiarity_image=answer.familiarity_image,
        familiarity_text=answer.familiarity_text,
        familiarity_id=answer.familiarity_id,
        unfamiliar_parts=tuple(answer.unfamiliar_parts),
        limits=answer.limits,
        width=answer.input.width,
        height=answer.input.height,
        image_sha256=answer.input.sha256,
        model_id=answer.model_id,
        policy_id=answer.policy_id,
        warnings=answer.warnings,
    )

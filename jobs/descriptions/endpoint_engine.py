"""Descriptions from an endpoint that speaks the API of OpenAI: its own, vLLM, llama.cpp, and many others.

Requests are under way at the same time, up to a bound, also those of several calls. A request has a deadline for all
its tries; a try that failed for a while is repeated after a wait that grows and has a random part, or that the endpoint
asks for (Retry-After). Such a wait holds all requests of the process back, since the endpoint asks for less, not for
others.

The key comes from an environment variable. It is in no record, and is blotted out of every message.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from asap.errors import ConfigError
from jobs.descriptions.engine import Failure, FailureKind, Outcome, Request, Usage
from jobs.descriptions.prompts import chat_prompt, fill
from jobs.descriptions.replies import read_reply, refused
from jobs.descriptions.settings import DescriptionSettings, EndpointSettings

_Result = TypeVar("_Result")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 20.0
_MOST_BYTES = 4 * 2**20
"""Bytes of an answer that are read. A description with its thoughts takes a few thousand."""
_MOST_PACKED_BYTES = 2**16
"""The same for a compressed answer, which may become a thousand times longer."""


class _Retry(NamedTuple):
    """A failure that the next try may not meet."""

    failure: Failure
    after_s: float | None = None
    """Seconds to wait that the endpoint asks for."""


class EndpointEngine:
    """An engine that asks an endpoint. Raises `ConfigError` if the key is missing or cannot be one."""

    def __init__(self, settings: DescriptionSettings) -> None:
        from httpx2 import Limits
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        if settings.endpoint is None:
            raise ConfigError("the engine openai needs an endpoint")
        self._settings, self._endpoint = settings, settings.endpoint
        self._key = read_key(settings.endpoint)
        # One loop for all calls keeps the connections. It has a thread, so that calls can overlap: the last requests of
        # a batch would wait alone otherwise.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._slots = asyncio.Semaphore(settings.endpoint.concurrency)
        # Redirects would carry pictures to an address nobody gave.
        connections = Limits(
            max_connections=self._endpoint.concurrency, max_keepalive_connections=self._endpoint.concurrency
        )
        self._client = AsyncOpenAI(
            api_key=self._key or "none",
            base_url=settings.endpoint.address,
            max_retries=0,
            timeout=settings.endpoint.timeout_s,
            http_client=DefaultAsyncHttpxClient(
                follow_redirects=False, limits=connections, event_hooks={"response": [_bound_body]}
            ),
        )
        self._held_until = 0.0
        """Time, by the monotonic clock, before which the endpoint wants no request."""
        self._thread.start()

    def describe(self, requests: Sequence[Request]) -> list[Outcome]:
        """Ask for all descriptions. Every failure concerns its own request. Several threads may call it at a time."""
        return self._run(self._describe(requests))

    def record(self) -> dict[str, Any]:
        """Return the model, the address, the prompt and the generation settings."""
        endpoint, settings = self._endpoint, self._settings
        return {
            "engine": "openai", "model": settings.source, "address": endpoint.address,
            "prompt": chat_prompt(settings), "max_new_tokens": settings.max_new_tokens, "max_side": settings.max_side,
            "temperature": endpoint.temperature, "body": endpoint.body,
        }  # fmt: skip

    def close(self) -> None:
        """Close the connections."""
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Wait for work in the loop; an interruption of the wait ends the work."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _describe(self, requests: Sequence[Request]) -> list[Outcome]:
        async def describe_one(request: Request) -> Outcome:
            async with self._slots:  # the picture is encoded inside, so that only requests under way take memory
                try:
                    # In another thread, since a picture takes milliseconds in which no other request would go on.
                    return await self._ask(await asyncio.to_thread(self._messages, request))
                except Exception as error:
                    return Failure("model_error", self._clean(f"{type(error).__name__}: {error}"))

        return list(await asyncio.gather(*map(describe_one, requests)))

    def _messages(self, request: Request) -> list[dict[str, Any]] | Failure:
        """Return the messages of a request, or the failure of one without a picture or a text."""
        content: list[dict[str, Any]] = []
        if self._settings.kind == "caption":
            if request.image is None:
                return Failure("no_input", "there is no picture")
            content.append(
                {"type": "image_url", "image_url": {"url": data_url(request.image, self._settings.max_side)}}
            )
        elif not (request.text or "").strip():
            return Failure("no_input", "there is no text")
        prompt = fill(chat_prompt(self._settings), request.text)
        if not content:
            return [{"role": "user", "content": prompt}]  # servers of text models take a plain string only
        return [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]

    async def _ask(self, messages: list[dict[str, Any]] | Failure) -> Outcome:
        """Try until there is an outcome, the tries are used up, or the deadline has come."""
        if isinstance(messages, Failure):
            return messages
        deadline = time.monotonic() + self._endpoint.deadline_s
        wait_s, tries = 0.0, 0
        failure = Failure("throttled", "the endpoint asks for a pause that is longer than the deadline")
        while True:
            wait_s = max(wait_s, self._held_until - time.monotonic())
            if time.monotonic() + wait_s >= deadline:
                return failure
            await asyncio.sleep(wait_s)
            if time.monotonic() < self._held_until:
                continue  # another request was asked to wait meanwhile
            outcome = await self._try_once(messages, deadline - time.monotonic())
            tries += 1
            if not isinstance(outcome, _Retry):
                return outcome
            failure = outcome.failure
            if tries > self._endpoint.retries:
                return failure
            wait_s = random.uniform(0, min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**tries))
            if outcome.after_s is not None:
                # A pause of hours fails the requests under way; the next ones try again after a deadline.
                pause_s = min(outcome.after_s, self._endpoint.deadline_s)
                self._held_until = max(self._held_until, time.monotonic() + pause_s)
                # Requests that all wait for one moment would all come at that moment.
                wait_s = pause_s + random.uniform(0, min(1.0, 0.25 * pause_s))

    async def _try_once(self, messages: list[dict[str, Any]], left_s: float) -> Outcome | _Retry:
        import httpx2
        import openai

        endpoint = self._endpoint
        body = {"messages": messages, "model": self._settings.source, **endpoint.body}
        body[endpoint.limit_field] = self._settings.max_new_tokens
        if endpoint.temperature is not None:
            body["temperature"] = endpoint.temperature
        try:
            # The client's own timeout starts again with every byte; this one ends a try however slowly bytes come.
            async with asyncio.timeout(min(endpoint.timeout_s, left_s)):
                response = await self._client.post("/chat/completions", body=body, cast_to=httpx2.Response)
        except (TimeoutError, openai.APITimeoutError):
            return self._retry("timeout", f"no answer within {min(endpoint.timeout_s, left_s):.3g} s")
        except openai.APIStatusError as error:
            return self._status_outcome(error)
        except openai.APIConnectionError as error:
            return self._retry("unreachable", f"the connection failed: {error.__cause__ or error}")
        except _TooLong as error:
            return self._retry("bad_answer", str(error))
        # The bytes, not the header, decide what the answer is: servers and proxies get the type wrong.
        try:
            answer = json.loads(response.content)
        except (ValueError, RecursionError):
            return self._retry("bad_answer", f"the answer is no JSON: {self._without_key(response.text)[:80]!r}")
        return self._read(answer)

    def _status_outcome(self, error: Any) -> Outcome | _Retry:
        """Return the outcome for an HTTP status that is no success."""
        status, detail = error.status_code, f"HTTP {error.status_code}: {_message_of(error)}"
        if status in (401, 403):
            return Failure("not_allowed", self._clean(detail))
        if status == 429 or status == 503:
            retry = self._retry("throttled" if status == 429 else "server_error", detail)
            return retry._replace(after_s=retry_after_s(error.response.headers))
        if status in (408, 409, 425) or status >= 500:
            return self._retry("server_error", detail)
        if "content_filter" in str(error.code) or "content_policy" in str(error.code):
            return refused(self._clean(_message_of(error)))
        return Failure("rejected", self._clean(detail))

    def _read(self, answer: Any) -> Outcome | _Retry:
        """Read the answer of the endpoint, of which nothing is certain."""
        if not isinstance(answer, dict):
            return self._retry("bad_answer", f"the answer is no JSON object: {self._beginning(answer)}")
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return self._retry("bad_answer", f"the answer has no choices: {self._beginning(answer)}")
        usage, choice = _usage_of(answer), choices[0]
        message = choice.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(message, dict) and isinstance(message.get("refusal"), str) and message["refusal"]:
            return refused(self._clean(message["refusal"]), usage)
        if choice.get("finish_reason") == "content_filter":
            return refused("its content filter", usage)
        if isinstance(content, list):  # some servers answer in parts
            texts = [part.get("text") for part in content if isinstance(part, dict)]
            content = " ".join(text for text in texts if isinstance(text, str))
        if not isinstance(content, str | None) or not isinstance(message, dict):
            return self._retry("bad_answer", f"the answer has no message with a text: {self._beginning(answer)}")
        content = self._without_key(content or "")  # an endpoint may repeat the key anywhere
        outcome = read_reply(content, is_cut=choice.get("finish_reason") == "length", usage=usage)
        return Failure(outcome.kind, self._clean(outcome.detail), usage) if isinstance(outcome, Failure) else outcome

    def _retry(self, kind: FailureKind, detail: str) -> _Retry:
        return _Retry(Failure(kind, self._clean(detail)))

    def _clean(self, message: str) -> str:
        """Return a message on one line, of bounded length, and without the key, which an endpoint may repeat."""
        line = " ".join(self._without_key(message).split())
        return line if len(line) <= 300 else f"{line[:297]}..."

    def _beginning(self, answer: Any) -> str:
        """Return the beginning of an answer, from which the key is removed before it is cut."""
        return self._without_key(json.dumps(answer, ensure_ascii=False))[:120]

    def _without_key(self, text: str) -> str:
        if not self._key:
            return text
        return text.replace(self._key, "***").replace(json.dumps(self._key)[1:-1], "***")


class _TooLong(Exception):
    """The error of an answer that goes on beyond its bound."""


async def _bound_body(response: Any) -> None:
    """Have the body of a response end with `_TooLong` once it is too long. The client calls this before it reads."""
    from httpx2 import AsyncByteStream

    is_packed = response.headers.get("content-encoding", "identity").lower() not in ("", "identity")
    most = _MOST_PACKED_BYTES if is_packed else _MOST_BYTES

    class Bounded(AsyncByteStream):
        def __init__(self, body: Any) -> None:
            self._body = body

        async def __aiter__(self) -> AsyncIterator[bytes]:
            read = 0
            async for part in self._body:
                read += len(part)
                if read > most:
                    raise _TooLong(f"the answer is longer than {most:,} bytes{' of compressed data' * is_packed}")
                yield part

        async def aclose(self) -> None:
            await self._body.aclose()

    response.stream = Bounded(response.stream)


def read_key(endpoint: EndpointSettings) -> str | None:
    """Return the key from the environment; None if the endpoint needs none. The errors do not show it."""
    if endpoint.key_env is None:
        return None
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise ConfigError(
            f"the key of the endpoint {endpoint.address} is missing: the environment variable {endpoint.key_env} is "
            "not set. Set it, or give the endpoint key_env=null if it needs no key."
        )
    if not re.fullmatch(r"[!-~]+", key):  # the client would show it in its own error
        raise ConfigError(
            f"the key in the environment variable {endpoint.key_env} holds blanks or characters that no header can "
            "have. Set it again."
        )
    return key


def data_url(image: Image.Image, max_side: int) -> str:
    """Return a picture as a data: URL of a JPEG whose sides are at most `max_side` pixels."""
    shrunk = image.convert("RGB")
    shrunk.thumbnail((max_side, max_side))
    buffer = BytesIO()
    shrunk.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def retry_after_s(headers: Any) -> float | None:
    """Return the seconds that the headers ask to wait, given as a number or as a date; None if they do not say."""
    for name, scale in (("retry-after-ms", 1000), ("retry-after", 1)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / scale
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, TypeError):
                continue
        if seconds == seconds:  # not NaN
            return max(0.0, seconds)
    return None


def _message_of(error: Any) -> str:
    """Return what the endpoint says of an error: the message in its JSON, else the beginning of its body."""
    body = error.body
    if isinstance(body, dict):
        inner = body.get("error", body)
        message = inner.get("message") if isinstance(inner, dict) else inner
        if isinstance(message, str):
            return message
    return str(body if body is not None else error.response.reason_phrase)


def _usage_of(answer: dict[str, Any]) -> Usage:
    usage = answer.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    return Usage(*(count if isinstance(count, int) and count > 0 else 0 for count in counts))

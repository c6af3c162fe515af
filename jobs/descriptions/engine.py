"""The seam between those who need descriptions and the engines that have them.

An engine gets requests and returns one outcome for each, in their order: a reply, or a failure that says why there is
none. What one request meets disturbs no other. A call keeps nothing and can be repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from PIL import Image

FailureKind = Literal[
    "no_entry",
    "no_input",
    "empty",
    "special_tokens",
    "loop",
    "refusal",
    "out_of_memory",
    "model_error",
    "process_died",
    "unreachable",
    "timeout",
    "throttled",
    "server_error",
    "rejected",
    "not_allowed",
    "bad_answer",
]
RETRYABLE: frozenset[str] = frozenset({"unreachable", "timeout", "throttled", "server_error", "bad_answer"})
"""Kinds of failures that another try may not meet."""


@dataclass(frozen=True)
class Request:
    """A picture or a text to describe."""

    custom_id: str
    """The name of the pair, unique in the job."""
    image_uri: str
    image: Image.Image | None
    """None for an engine that does not look at the picture."""
    text: str | None = None
    given_id: str | None = None
    """The caller's name for the pair, if an earlier pair has that name too."""


@dataclass(frozen=True)
class Usage:
    """The tokens of requests; 0 where nobody counts them."""

    input_tokens: int = 0
    output_tokens: int = 0


NO_USAGE = Usage()


@dataclass(frozen=True)
class Reply:
    """A description that can be used."""

    text: str
    is_cut: bool = False
    """True if the model was stopped at its limit of new tokens, so that the end is missing."""
    usage: Usage = NO_USAGE


@dataclass(frozen=True)
class Failure:
    """The reason why a request has no description."""

    kind: FailureKind
    detail: str
    """A sentence for a person."""
    usage: Usage = NO_USAGE

    @property
    def is_retryable(self) -> bool:
        """True if another try may succeed."""
        return self.kind in RETRYABLE

    def __str__(self) -> str:
        return self.detail


Outcome = Reply | Failure


class Engine(Protocol):
    """The interface of an engine. The constructor loads; what it raises concerns every request."""

    def describe(self, requests: Sequence[Request]) -> list[Outcome]:
        """Return a reply or a failure for each request, in their order."""
        ...

    def record(self) -> dict[str, Any]:
        """Return what decides the descriptions: model, revision, prompt and generation settings. It holds no secret."""
        ...

    def close(self) -> None:
        """Give back connections and memory. The engine describes nothing after it."""
        ...


def total_usage(outcomes: Iterable[Outcome]) -> Usage:
    """Return the tokens of all outcomes. A failure may have cost tokens too."""
    usages = [outcome.usage for outcome in outcomes]
    return Usage(sum(usage.input_tokens for usage in usages), sum(usage.output_tokens for usage in usages))

"""The deadline of a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve.api.middleware import Trace
from serve.errors import Refused


@asynccontextmanager
async def deadline(seconds: float, start: float, trace: Trace) -> AsyncIterator[None]:
    """Cancel the block, and everything it awaits, once the deadline has passed.

    Args:
        seconds: Seconds from the start to the deadline.
        start: Time of the event loop at the start.
        trace: The request.
    """
    try:
        async with asyncio.timeout_at(start + seconds):
            yield
    except TimeoutError:
        if not trace.is_received():  # the sender was slow, not the server
            message = f"the body did not arrive within {seconds:g} s. Send a smaller one, or on a faster line."
            raise Refused(408, "body_late", message, headers={"Connection": "close"}) from None
        raise Refused(504, "deadline", f"not done within {seconds:g} s", retry_after_s=1) from None


def loop_time() -> float:
    """Return the time of the event loop."""
    return asyncio.get_running_loop().time()

"""Orderly stops: SIGINT, SIGTERM and SIGHUP interrupt the main thread, whatever Ray makes of them.

An interruption unwinds the stack as Ctrl-C does in Python, so that a job can write what it has and record that it was
stopped. Ray sets handlers of its own when it starts and when it trains; `handlers_kept` restores ours.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast

_Result = TypeVar("_Result")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DEAF_S = 5.0
"""Seconds after a signal in which more signals are ignored, so that they do not break the orderly stop."""
_WAKE_S = 0.2
_HURRY_S = 60.0
"""Seconds that a call in the background has to end once it must."""

_last_s = float("-inf")
_holds, _is_held = False, False
"""True in a block of `stop_held`, and True if a signal came in it."""


def stop_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP raise `KeyboardInterrupt` in the main thread of this process.

    A shell lets the commands that a script starts with `&` ignore SIGINT; they obey it from here on. SIGHUP stays
    ignored if it was, because `nohup` promises that.
    """
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    # Registered first, it is called last. Python then restores the default handlers, which kill, and takes some time to
    # free everything. It leaves ignored signals alone.
    atexit.register(ignore_signals)


def exit_on_signals(code: int) -> None:
    """Let the three signals end this process at once with an exit code. An orderly stop is over, or takes too long."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: os._exit(code))


def ignore_signals() -> None:
    """Ignore the three signals."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def what_is_kept(stop: BaseException) -> str:
    """Return the notes of the interruption that led to this exception: what is kept, and how to go on.

    Whoever knows it adds it as a note to the `KeyboardInterrupt`. It is empty if nobody did.
    """
    error: BaseException | None = stop
    while error is not None:
        if isinstance(error, KeyboardInterrupt) and (notes := getattr(error, "__notes__", None)):
            return " ".join(notes)
        # A second signal may have interrupted the stop, so earlier interruptions count too.
        error = error.__cause__ or error.__context__
    return ""


def _interrupt(number: int, frame: object) -> None:
    global _last_s, _is_held
    now = time.monotonic()
    if now - _last_s < _DEAF_S:
        return
    _last_s = now
    if _holds and not _is_held:
        _is_held = True
        return
    raise KeyboardInterrupt


@contextmanager
def stop_held() -> Iterator[None]:
    """Hold a signal back until the block has ended well, and interrupt then. A second signal interrupts at once.

    It is for code of others that catches whatever is raised in it: the stop would be lost, and a lock of theirs held
    for good. Ray's start is such code.
    """
    global _holds, _is_held
    if threading.current_thread() is not threading.main_thread():
        yield  # signals interrupt the main thread alone, which is not in this block
        return
    _holds, _is_held = True, False
    try:
        yield
    finally:
        _holds = False
    if _is_held:
        raise KeyboardInterrupt


@contextmanager
def handlers_kept() -> Iterator[Callable[[], None]]:
    """Restore the handlers of the three signals after a block that may set others.

    The block gets a function that restores them earlier. An exit that such a handler raised inside the block becomes
    the `KeyboardInterrupt` that ours would have raised.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # only the main thread may set handlers
        return
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in handlers.items():
            if handler is not None:  # a handler that was not set from Python cannot be restored
                signal.signal(number, handler)

    try:
        yield restore
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        restore()


class Background(Generic[_Result]):
    """A call that runs in a thread of its own, while the main thread waits where a signal reaches it."""

    def __init__(self, call: Callable[[threading.Event], _Result]) -> None:
        self._call = call
        self._is_ended, self.is_stopped = threading.Event(), threading.Event()
        self._result: _Result | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="work", daemon=True)

    def start(self) -> None:
        """Start the call."""
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; return True if it came in time. Raises what the call raised."""
        deadline = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
        # A signal that reaches another thread is handled when the main thread wakes up, so it wakes up often.
        while not self._is_ended.wait(min(_WAKE_S, max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                return False
        if self._error is not None:
            raise self._error
        return True

    def end(self, hurry: Callable[[], None]) -> None:
        """Call `hurry` from time to time until the call has ended, for `_HURRY_S` at most."""
        deadline = time.monotonic() + _HURRY_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            hurry()
            self._is_ended.wait(_WAKE_S)

    @property
    def result(self) -> _Result:
        """The value that the call returned, once it has ended."""
        self.wait()
        return cast("_Result", self._result)

    def _run(self) -> None:
        try:
            self._result = self._call(self.is_stopped)
        except BaseException as error:
            self._error = error
        self._is_ended.set()


@contextmanager
def in_background(
    call: Callable[[threading.Event], _Result], hurry: Callable[[], None] | None = None
) -> Iterator[Background[_Result]]:
    """Run a call in another thread for the duration of the block.

    The call gets an event, which is set when the block is left. Ray's own calls hold a signal up, and some set handlers
    where they run in the main thread.

    Args:
        call: The call.
        hurry: Makes the call end. If the block is left before the call has ended, it is called until then. None: the
            call may outlive the block.
    """
    background = Background(call)
    try:
        background.start()  # a signal may come before it returns
        yield background
    finally:
        background.is_stopped.set()
        if hurry is not None:
            background.end(hurry)

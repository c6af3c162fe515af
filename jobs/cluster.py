"""The Ray that jobs run on: one that starts by itself on this machine, or a running cluster by its address."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobs.errors import JobError


@contextmanager
def ray_running(address: str | None = None, **options: Any) -> Iterator[None]:
    """Ray for the time of the block; one that is running already in this process is used and left running."""
    _set_defaults(local=address is None)
    import ray

    if ray.is_initialized():
        quieten()
        yield
        return
    _start(address, options)
    try:
        quieten()
        yield
    finally:
        ray.shutdown()


def _start(address: str | None, options: dict[str, Any]) -> None:
    import ray

    local = {} if address else {"include_dashboard": False}
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR} | local | options
    for last in (False, False, True):
        try:
            ray.init(address or "local", **settings)
            return
        except ConnectionError as error:
            raise JobError(f"no Ray cluster answers at {address}: {error}") from error
        except Exception as error:  # Ray gives a busy machine half a minute, and names no class for what it raises
            ray.shutdown()
            if last or "timed out during startup" not in str(error):
                raise JobError(
                    f"Ray did not start: {str(error).partition(chr(10))[0]} Let the machine do less, or give --address "
                    "of a cluster that runs; the same command begins anew"
                ) from error


def _set_defaults(local: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if local and not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        # Ray would write a token for ever into the home folder; one that dies with this process keeps others out too.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def quieten() -> None:
    """Let Ray Data work in this process without telling of it."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.use_datasource_v2 = False
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.INFO)  # below, it writes pages of figures every few seconds
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the session's log file still tells everything
            handler.setLevel(logging.CRITICAL)

"""Which failures of a training run are tried again: those that another try may not meet."""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from asap.errors import AsapError
from jobs.errors import StorageError

RETRIES = 3
"""Times that a run goes on by itself after a worker was lost."""


class FinalFailures(UserCallback):
    """Ends a run where a worker raised on purpose: the same steps from the same checkpoint come to the same end.

    Ray Train counts whatever a worker raises as a lost worker. It tells its callbacks first, and what one of them
    raises it does not try again.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise what is final of what the workers raised, by rank."""
        for error in worker_exceptions.values():
            if isinstance(error, AsapError) and not isinstance(error, StorageError):  # a store may be back
                raise error


def final_failure(error: Exception) -> AsapError | None:
    """What `FinalFailures` ended the run with, of what the trainer raised."""
    failure = getattr(error, "controller_failure", None)
    return failure if isinstance(failure, AsapError) else None

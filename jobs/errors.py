"""The errors of jobs. Each message is one sentence about the problem, and what to do about it.

    AsapError
    ├── StorageError               a location that cannot be read or written: bucket, credentials, folder
    └── JobError                   a job that cannot start or resume
        ├── InputNotFound          the input does not exist, or holds nothing to scan
        ├── PathNotShared          some machines of the cluster cannot use a path of the job
        ├── JobUnknown             the cluster has no submitted job of this id
        ├── JobInUse               another process is working on the job
        ├── JobDiffers             the job folder belongs to other settings, another model or another input
        ├── InputUnfamiliar        the model has seen nothing like most of the input; exit code 4
        ├── TooManyErrors          the job is done, with more errors than allowed; exit code 3
        ├── JobFailed              the work stopped; finished work is kept, and the same command resumes it
        └── TrainingDiverged       the loss of a training run is not finite or has exploded

`StorageError` and `JobError` are in `asap.errors`. `FetchFailed` concerns a single object and becomes a row of the
results (`error_code`, `error_detail`, `retryable`).

Exit codes of every command: 0 done, 1 error, 2 wrong usage, 3 done with more errors than `--max-error-rate`, 4 stopped
because the input is unfamiliar, 130 stopped by a signal or `asap cancel`.
"""

from asap.errors import EXIT_STOPPED as EXIT_STOPPED
from asap.errors import EXIT_TOO_MANY_ERRORS as EXIT_TOO_MANY_ERRORS
from asap.errors import EXIT_UNFAMILIAR as EXIT_UNFAMILIAR
from asap.errors import JobError as JobError


class InputNotFound(JobError):
    """The input does not exist, or holds nothing to scan."""


class PathNotShared(JobError):
    """Some machines of the cluster cannot read or write a path of the job."""


class JobUnknown(JobError):
    """The cluster has no submitted job of this id."""


class JobInUse(JobError):
    """Another process is working on the job."""


class JobDiffers(JobError):
    """The job folder belongs to other settings, another model or another input."""


class InputUnfamiliar(JobError):
    """Most of a sample of the input is unfamiliar to the model. The job stopped before the rest."""


class TooManyErrors(JobError):
    """The job is done, but a larger share of its pairs failed than is allowed."""


class JobFailed(JobError):
    """The work stopped. Finished work is kept."""


class TrainingDiverged(JobError):
    """The loss or its gradients are not finite, or the loss is many times what it was."""

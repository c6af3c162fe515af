"""The errors of jobs. Each message is one sentence about the problem, and what to do about it.

    AsapError
    ├── StorageError               a location that cannot be read or written: bucket, credentials, folder
    └── JobError                   a job that cannot start or resume
        ├── InputNotFound          the input does not exist, or holds nothing to scan
        ├── JobInUse               another process is working on the job
        ├── JobDiffers             the job folder belongs to other settings, another model or another input
        ├── InputUnfamiliar        the model has seen nothing like most of the input; exit code 4
        ├── JobFailed              the work stopped; finished work is kept, and the same command resumes it
        └── TrainingDiverged       the loss of a training run is not finite or has exploded

`StorageError` is in `asap.errors`. `FetchFailed` concerns a single object and becomes a row of the results
(`error_code`, `error_detail`, `retryable`).
"""

from asap.errors import AsapError


class JobError(AsapError):
    """A job that cannot start or resume."""


class InputNotFound(JobError):
    """The input does not exist, or holds nothing to scan."""


class JobInUse(JobError):
    """Another process is working on the job."""


class JobDiffers(JobError):
    """The job folder belongs to other settings, another model or another input."""


class InputUnfamiliar(JobError):
    """Most of a sample of the input is unfamiliar to the model. The job stopped before the rest."""


class JobFailed(JobError):
    """The work stopped. Finished work is kept."""


class TrainingDiverged(JobError):
    """The loss or its gradients are not finite, or the loss is many times what it was."""

"""The errors of jobs, each one sentence that says what was wrong and what to do.

    AsapError
    └── JobError               a job that cannot start or go on
        ├── StorageError       a place that cannot be read or written: bucket, credentials, folder
        ├── InputNotFound      the input is not there, or holds nothing to scan
        ├── JobInUse           another process is working on the job
        ├── JobDiffers         the job folder belongs to other settings, another model or another input
        ├── JobFailed          the work stopped; what was done is kept, and the same command goes on from there
        └── TrainingDiverged   the loss of a training run stopped making sense

`FetchFailed` is about one object alone and becomes a row (`error_code`, `error_detail`, `retryable`).
"""

from asap.errors import AsapError


class JobError(AsapError):
    """A job that cannot start or go on."""


class InputNotFound(JobError):
    """The input is not there, or holds nothing to scan."""


class JobInUse(JobError):
    """Another process is working on the job."""


class JobDiffers(JobError):
    """The job folder belongs to other settings, another model or another input."""


class JobFailed(JobError):
    """The work stopped; what was done is kept."""


class TrainingDiverged(JobError):
    """The loss or its gradients are not finite, or the loss is many times what it was."""

import pytest
from ray.train import ControllerError, WorkerGroupError

from asap.errors import AsapError, CorpusError, StorageError
from jobs.errors import TrainingDiverged
from jobs.train.worker import FinalFailures, final_failure


@pytest.mark.parametrize("error", [TrainingDiverged("the loss of step 3 is not finite"), CorpusError("a.jpg is gone")])
def test_an_error_of_ours_ends_the_run(error: AsapError) -> None:
    with pytest.raises(type(error), match=str(error)):
        FinalFailures().after_exception(None, {0: RuntimeError("connection reset"), 1: error})


@pytest.mark.parametrize("error", [RuntimeError("killed"), StorageError("s3://a cannot be used: timed out")])
def test_a_run_continues_after_a_lost_worker_or_store(error: Exception) -> None:
    FinalFailures().after_exception(None, {0: error})


def test_the_error_that_ended_the_run_is_found_in_the_exception_of_rays_trainer() -> None:
    diverged = TrainingDiverged("the loss of step 3 is not finite")
    assert final_failure(ControllerError(diverged)) is diverged
    assert final_failure(ControllerError(RuntimeError("out of memory"))) is None
    assert final_failure(WorkerGroupError("rank 0 died", {0: RuntimeError("killed")})) is None

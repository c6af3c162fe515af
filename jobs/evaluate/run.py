"""Evaluation of a model on a labeled corpus by Ray workers: metrics, charts, and a page with the worst pairs.

A shard is a range of record numbers, and its `Evaluation` depends on those records alone. The driver keeps one
evaluation per shard and merges them in order, so a worker that dies costs time, but no pair is lost or counted twice.
Predictions are merged, not metrics: a mean of AUCs is not the AUC. Workers read the model, and the pictures of a
corpus, from a bucket or from a disk that they share, which is checked first. Everything that can be checked without
them is checked before torch and Ray are imported.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from asap.storage.location import Location
from asap.weights.model_folder import load_folder
from jobs.cluster import ray_running, wait_until_free
from jobs.evaluate.plan import Report, plan_evaluation
from jobs.evaluate.settings import EvaluateSettings
from jobs.reach import late_machines_asked, note_unasked
from jobs.sharing import shared
from jobs.states import job_states

OnPairs = Callable[[int, int], None]


def evaluate(
    settings: EvaluateSettings,
    progress: OnPairs = lambda done, total: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Report:
    """Evaluate a model on a split, write the results to `settings.out`, and return the report (`metrics.json`).

    Raises `CorpusError`, `AnnotationError`, `InputError` for a picture that cannot be used, `CheckpointError`,
    `ConfigError`, `JobDiffers` if the folder holds another evaluation, `JobFailed`.

    Args:
        settings: The model, the corpus and how to run.
        progress: Receives the number of evaluated pairs and of all pairs.
        on_note: Receives a sentence if the machines are not those that were requested.
    """
    out = Location.parse(settings.out)
    with job_states(settings, "evaluate", out.name, out) as states:

        def report(done: int, total: int) -> None:
            states.note(done=done, total=total)
            progress(done, total)

        states.change({"state": "validating"})
        plan = plan_evaluation(settings)
        from jobs.evaluate.outputs import write_outputs
        from jobs.evaluate.shards import evaluate_shards, explain_worst, worker_pool

        load_folder(plan.model)  # raises if the weights do not fit, which is better known before Ray starts
        states.change({"state": "running"})
        # One share for all steps: between two of them nobody may take the room of the workers.
        with ray_running(settings.address), shared() if settings.address else nullcontext():
            if settings.address:
                note_unasked(plan.path_uses(), on_note)
            pool = worker_pool(settings, on_note)
            # After a wait for machines, which are asked too, as are those that come during the work.
            with late_machines_asked(plan.path_uses() if settings.address else []) as check:
                wait_until_free(
                    pool.needs, 1, settings.wait_for_machines_s, on_note,
                    "Or give more --workers, which need less each.",
                )  # fmt: skip
                evaluation = evaluate_shards(plan, pool, report, on_note, check)
                predictions = evaluation.predictions()
                worst = explain_worst(plan, pool, predictions)
        states.change({"state": "finalizing"})
        return write_outputs(plan, evaluation, predictions, worst)

"""The files that an evaluation writes: metrics, charts and the page."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
from scipy.special import expit

from asap.evaluation.intervals import bootstrap_intervals
from asap.evaluation.metrics import Evaluation, Predictions, coverage_metrics
from asap.evaluation.reliability import reliability
from asap.storage.files import delete_file, write_bytes
from jobs.evaluate.charts import draw_figures
from jobs.evaluate.page import WorstPair, evaluation_page
from jobs.evaluate.plan import METRICS, OUTPUTS, PAGE, EvaluationPlan, Report
from jobs.evaluate.verdicts import first_sentence, verdict_shares


def write_outputs(
    plan: EvaluationPlan, evaluation: Evaluation, predictions: Predictions, worst: list[WorstPair]
) -> Report:
    """Write the metrics, the charts and the page, and return the metrics."""
    scores = expit(predictions.margin.astype(np.float64))
    about = plan.about() | {
        "pairs_in_split": plan.in_split,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version("asap-ray"),
    }
    calibration = reliability(scores, predictions.manipulated).report()
    shares = verdict_shares(predictions, scores, plan.policy)
    report = {
        "about": about,
        "sentence": first_sentence(shares),
        "limits": plan.limits,
        "read": plan.read,
        **evaluation.compute(),
        "intervals": bootstrap_intervals(predictions),
        **coverage_metrics(predictions, plan.policy.unfamiliar),
        "verdicts": shares,
        "calibration": calibration,
    }
    report["worst"] = [{"id": pair.record.id, "fake_cls": pair.record.fake_cls, "score": pair.score} for pair in worst]
    for name in OUTPUTS:
        delete_file(plan.out / name)  # no chart of an earlier evaluation stays behind
    charts = draw_figures(predictions)
    files = {METRICS: json.dumps(report, indent=2, allow_nan=False) + "\n"} | charts
    files[PAGE] = evaluation_page(report, charts, worst)
    for name, text in files.items():
        write_bytes(plan.out / name, text.encode("utf-8", "replace"))
    return report

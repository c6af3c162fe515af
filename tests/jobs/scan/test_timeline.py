"""Tests of the timeline of a job."""

from __future__ import annotations

import json
from itertools import pairwise

from jobs.scan.timeline import MOST, Timeline, speeds


def test_points_are_at_least_a_distance_apart_and_few_however_long_a_job_runs() -> None:
    timeline = Timeline()
    for tick in range(100_000):
        timeline.add(tick / 2, tick)
    points = timeline.to_json()["points"]
    assert MOST / 2 <= len(points) <= MOST
    assert points[0] == [0.0, 0]
    distances = [end[0] - start[0] for start, end in pairwise(points)]
    assert max(distances) == min(distances)
    assert points[-1][0] > 49_000


def test_a_resumed_job_goes_on_with_its_timeline_without_the_pause() -> None:
    first = Timeline()
    for second in range(10):
        first.add(second, 10 * second)
    record = json.loads(json.dumps(first.to_json()))
    second_run = Timeline(**record)
    second_run.begin(90)
    second_run.add(0.2, 90)
    second_run.add(5, 140)
    assert second_run.to_json()["points"][-2:] == [[9.0, 90], [14.0, 140]]


def test_rows_that_are_judged_again_begin_a_part_of_their_own_and_the_last_ones_count() -> None:
    first = Timeline()
    for second in range(10):
        first.add(second, 10 * second)
    retry = Timeline([list(point) for point in first.to_json()["points"]], every_s=32.0)  # type: ignore[attr-defined]
    retry.begin(50)
    retry.add(4, 70)
    retry.add(8, 90, is_last=True)
    points = retry.to_json()["points"]
    assert points[-2:] == [[9.0, 50], [17.0, 90]]
    assert speeds(points)[-1] == (9.0, 17.0, 5.0)


def test_speeds_are_rows_by_seconds_of_each_part_and_never_negative() -> None:
    assert speeds([[0, 0], [10, 50], [20, 40], [20, 60]]) == [(0, 10, 5.0), (10, 20, 0.0)]
    assert speeds([]) == []

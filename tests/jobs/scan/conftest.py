"""Fixtures of the tests of scans."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture
def deadly_describer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have scans caption and explain by a stage that ends its process; see `DeadlyCaptioner`."""
    from ray import cloudpickle

    from jobs.scan import pipeline
    from tests.support.deadly import DeadlyCaptioner

    module = sys.modules[DeadlyCaptioner.__module__]
    cloudpickle.register_pickle_by_value(module)
    monkeypatch.setattr(pipeline, "DescriptionStage", DeadlyCaptioner)
    monkeypatch.setattr(pipeline, "TRIES", 2)
    yield
    cloudpickle.unregister_pickle_by_value(module)

"""Fixtures of the tests of scans."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def deadly_describer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have scans caption and explain by a stage that ends its process; see `DeadlyCaptioner`."""
    from tests.support.deadly import DeadlyCaptioner, stages_replaced

    with stages_replaced(monkeypatch, scan=DeadlyCaptioner):
        yield

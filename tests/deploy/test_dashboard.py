"""The dashboard of the API: Prometheus reads `/metrics` with a key, and answers each query of each panel."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serve.api.callers.keys import Keyring, new_key
from tests.support.serving import TEXT, FixedDetector, encoded, free_port, served
from tests.support.waiting import HANG_S, wait_until

DASHBOARD = json.loads((Path(__file__).parents[2] / "deploy/grafana/api.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
PROMETHEUS = shutil.which("prometheus")
_LABEL = re.compile(r'(\w+)=~?"')


@pytest.fixture(scope="module")
def scraped() -> Iterator[tuple[str, str]]:
    """The address of a server that has answered and refused requests, and a key that may read its metrics."""
    (key, line), (reader, reader_line) = new_key("desk"), new_key("prometheus", ["metrics"])
    with served(FixedDetector(), Keyring.parse([line, reader_line], "here")) as url:
        headers = {"authorization": f"Bearer {key}"}
        files = {"image": encoded()}
        for holder in (headers, headers, {"authorization": f"Bearer {reader}"}, {}):
            requests.post(f"{url}/v1/detect", files=files, data={"text": TEXT}, headers=holder, timeout=HANG_S)
        yield url, reader


def test_every_metric_and_label_of_the_dashboard_is_in_the_metrics(scraped: tuple[str, str]) -> None:
    url, key = scraped
    text = requests.get(f"{url}/metrics", headers={"authorization": f"Bearer {key}"}, timeout=HANG_S).text
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    labels.setdefault("asap_key_reloads_total", {"result", "replica"})  # no file of keys has changed
    for query in QUERIES:
        selectors = re.findall(r"\b(asap_\w+)(?:{([^}]*)})?", query)
        assert selectors, query
        for name, matchers in selectors:
            assert set(_LABEL.findall(matchers)) <= labels[name], query
        grouped = re.findall(r"by \(([^)]*)\)", query)
        assert all(set(by.split(", ")) <= labels[selectors[0][0]] for by in grouped), query


def test_panels_have_titles_and_do_not_overlap() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["title"] and panel["description"] for panel in DASHBOARD["panels"])


@pytest.mark.slow
@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed")
def test_prometheus_answers_every_query_of_the_dashboard(scraped: tuple[str, str], tmp_path: Path) -> None:
    assert PROMETHEUS is not None
    url, key = scraped
    job = {
        "job_name": "asap", "scrape_interval": "1s", "authorization": {"credentials": key},
        "static_configs": [{"targets": [url.removeprefix("http://")]}],
    }  # fmt: skip
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
    port = free_port()
    command = [
        PROMETHEUS, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            for query in QUERIES:
                whole = query.replace("$__rate_interval", "5m")
                wait_until(lambda whole=whole: bool(_answer(port, whole)), process=process)  # type: ignore[misc]
        finally:
            process.terminate()


def _answer(port: int, query: str) -> list[Any]:
    """Return the samples of an answer of Prometheus. A rate needs two scrapes, so it is empty at first."""
    try:
        answer = requests.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query}, timeout=HANG_S)
    except requests.ConnectionError:  # it does not listen yet
        return []
    if answer.status_code == 503:  # it is starting
        return []
    assert answer.status_code == 200, f"{query}: {answer.text}"
    found: list[Any] = answer.json()["data"]["result"]
    return found

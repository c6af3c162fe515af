"""Keys as their holders see them: scopes, expiry, rates, and what the log and the metrics say of them."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from serve.api.callers.keys import Keyring, new_key
from serve.schemas import ErrorResponse, ServerLimits
from tests.support.serving import TEXT, FixedDetector, api, encoded

PICTURE = encoded()
ROUTES = {
    "/v1/detect": "detect",
    "/v1/detect/batch": "detect",
    "/metrics": "metrics",
    "/v1/models": None,
    "/v1/limits": None,
}
"""The scope that each route needs."""


def _send(client: Any, key: str, path: str = "/v1/detect") -> Any:
    headers = {"authorization": f"Bearer {key}"}
    if path == "/v1/detect":
        return client.post(path, files={"image": PICTURE}, data={"text": TEXT}, headers=headers)
    if path == "/v1/detect/batch":
        return client.post(path, json={"items": [{}]}, headers=headers)
    return client.get(path, headers=headers)


def _code(answer: Any) -> tuple[int, str, str]:
    error = ErrorResponse.model_validate(answer.json()).error
    return answer.status_code, error.code, error.message


@pytest.mark.parametrize("scopes", [("detect",), ("metrics",), ("detect", "metrics")], ids=str)
def test_a_key_may_be_used_for_the_routes_of_its_scopes_only(scopes: tuple[str, ...]) -> None:
    key, line = new_key("desk", scopes)
    with api(FixedDetector(), Keyring.parse([line], "here")) as client:
        answers = {path: _send(client, key, path) for path in ROUTES}
    for path, scope in ROUTES.items():
        if scope is None or scope in scopes:
            assert answers[path].status_code == 200, answers[path].text
        else:
            message = f"the key desk may not be used for this route: it lacks the scope {scope}"
            assert _code(answers[path]) == (403, "scope_missing", message)


def test_a_key_that_has_expired_is_refused_everywhere(caplog: pytest.LogCaptureFixture) -> None:
    key, line = new_key("desk", expires="2026-01-02", now=datetime(2026, 1, 1, tzinfo=UTC))
    with api(FixedDetector(), Keyring.parse([line], "here")) as client, caplog.at_level(logging.INFO, "asap.requests"):
        answers = [_send(client, key, path) for path in ROUTES]
    for answer in answers:
        assert _code(answer)[:2] == (401, "unauthorized")
        assert "the key desk has expired" in answer.text
        assert answer.headers["www-authenticate"] == "Bearer"
    lines = [json.loads(record.message) for record in caplog.records]
    assert {(line["key"], line["status"]) for line in lines} == {("desk", 401)}


def test_a_key_is_revoked_and_another_is_admitted_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.api.callers.current_keys._CHECK_S", 0)
    (old, old_line), (new, new_line) = new_key("desk"), new_key("web")
    file = tmp_path / "keys"
    file.write_text(old_line)
    with api(FixedDetector(), Keyring.load(str(file)), keys_file=str(file)) as client:
        assert (_send(client, old).status_code, _send(client, new).status_code) == (200, 401)
        file.write_text(new_line)
        assert (_send(client, old).status_code, _send(client, new).status_code) == (401, 200)
        assert 'asap_key_reloads_total{replica="only",result="ok"} 2.0' in _send(client, new, "/metrics").text
        file.write_text("")
        assert _send(client, new).status_code == 401


def test_responses_say_what_a_key_may_still_send() -> None:
    key, line = new_key("desk")
    keyring = Keyring.parse([line], "here")
    with api(FixedDetector(), keyring, key_rate=1e-3, key_burst=3, max_batch_items=2) as client:
        headers = [_send(client, key, path).headers for path in ("/v1/models", "/v1/detect", "/v1/detect/batch")]
        limits = ServerLimits.model_validate(_send(client, key, "/v1/limits").json())
        headers += [_send(client, key).headers, _send(client, key).headers, _send(client, "unknown").headers]
        opened = client.get("/healthz").headers
    assert [sent.get("ratelimit-remaining") for sent in headers] == ["3", "2", "1", "0", "0", None]
    assert {sent["ratelimit-limit"] for sent in headers[:5]} == {"3"}
    assert {sent["ratelimit-policy"] for sent in headers[:5]} == {"3;w=3000"}
    assert 2900 <= int(headers[4]["ratelimit-reset"]) <= 3000
    assert "ratelimit-limit" not in opened
    assert limits.key is not None
    assert (limits.key.name, limits.key.remaining, limits.key.burst, limits.key.pairs_per_second) == (
        "desk",
        1,
        3,
        1e-3,
    )


def test_the_limits_of_requests_are_those_that_are_enforced() -> None:
    key, line = new_key("desk", ["detect"], "2999-01-01")
    changed: dict[str, Any] = {
        "max_image_bytes": 5000, "max_image_pixels": 4000, "max_text_chars": 30, "min_text_read": 0.4,
        "max_batch_items": 3, "max_batch_bytes": 30_000, "uri_prefixes": ("s3://pictures/",),
    }  # fmt: skip
    with api(FixedDetector(), Keyring.parse([line], "here"), **changed) as client:
        limits = ServerLimits.model_validate(_send(client, key, "/v1/limits").json())
    for name, value in changed.items():
        assert getattr(limits, name) == (list(value) if isinstance(value, tuple) else value)
    assert {"JPEG", "PNG", "WEBP", "HEIC"} <= set(limits.image_formats)
    assert limits.key is not None
    assert (limits.key.scopes, limits.key.expires) == (["detect"], datetime(2999, 1, 1, tzinfo=UTC))
    with api(FixedDetector()) as client:
        assert client.get("/v1/limits").json()["key"] is None
        assert client.get("/v1/limits?x=1").status_code == 422


def test_the_use_of_each_key_is_counted() -> None:
    (key, line), (other, other_line) = new_key("desk"), new_key("web", ["metrics"])
    with api(FixedDetector(), Keyring.parse([line, other_line], "here")) as client:
        for _ in range(2):
            _send(client, key)
        _send(client, other)
        _send(client, "unknown")
        metrics = _send(client, other, "/metrics").text
    assert 'asap_key_requests_total{key="desk",replica="only",status="200"} 2.0' in metrics
    assert 'asap_key_requests_total{key="web",replica="only",status="403"} 1.0' in metrics
    assert 'asap_key_pairs_total{key="desk",replica="only"} 2.0' in metrics
    assert "unknown" not in metrics


def test_the_log_line_of_a_request_says_who_asked_for_what_and_when(caplog: pytest.LogCaptureFixture) -> None:
    key, line = new_key("desk")
    begin = datetime.now(UTC)
    with (
        api(FixedDetector(), Keyring.parse([line], "here"), caller="10.1.2.3") as client,
        caplog.at_level(logging.INFO, "asap.requests"),
    ):
        _send(client, key)
        _send(client, key, "/metrics")
        client.get("/healthz")
        client.get("/metrics")
    sent, scraped, refused = (json.loads(record.message) for record in caplog.records)
    assert set(sent) == {"time", "id", "client", "key", "method", "route", "status", "ms", "replayed", "pairs"}
    picked = {name: sent[name] for name in ("client", "key", "method", "route", "status", "replayed")}
    assert picked == {
        "client": "10.1.2.3", "key": "desk", "method": "POST", "route": "/v1/detect", "status": 200, "replayed": False,
    }  # fmt: skip
    assert datetime.fromisoformat(sent["time"]) >= begin.replace(microsecond=0)
    assert sent["pairs"][0]["verdict"] == "authentic"
    assert (scraped["method"], scraped["route"]) == ("GET", "/metrics")
    assert (refused["route"], refused["status"], refused["key"]) == ("/metrics", 401, None)
    assert key not in caplog.text

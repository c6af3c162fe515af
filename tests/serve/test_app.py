"""The application on a real Ray Serve, started once."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import requests
from PIL import Image

from asap.errors import CheckpointError, ConfigError
from asap.finding import Pair
from asap.labels import VERDICTS
from asap.policy import Policy
from asap.weights.model_folder import folder_version
from serve.settings import ServeSettings
from tests.support.pictures import draw_jpeg
from tests.support.serving import TEXT, free_port
from tests.support.waiting import HANG_S, wait_until


@pytest.fixture(scope="module")
def served(ray_here: None) -> Iterator[tuple[str, Any]]:
    """The address and the handle of a running application."""
    from ray import serve

    from serve.app import build
    from serve.run import start

    settings = ServeSettings(
        port=free_port(), max_replicas=1, detector_cpus=0.5, decoders=1, drain_s=HANG_S, deadline_s=HANG_S,
        decode_timeout_s=HANG_S,
    )  # fmt: skip
    handle = start(build(settings), settings)
    yield f"http://127.0.0.1:{settings.port}", handle
    serve.shutdown()


def test_rays_list_of_applications_is_hidden(served: tuple[str, Any]) -> None:
    answer = requests.get(f"{served[0]}/-/routes", timeout=HANG_S)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert requests.get(f"{served[0]}/-/healthz", timeout=HANG_S).text == "success"


def test_the_server_is_ready_and_detects_a_pair_over_http(served: tuple[str, Any]) -> None:
    url, _ = served
    assert requests.get(f"{url}/readyz", timeout=HANG_S).json() == {"status": "ok"}
    answer = requests.post(f"{url}/v1/detect", files={"image": draw_jpeg(1)}, data={"text": TEXT}, timeout=HANG_S)
    assert answer.status_code == 200, answer.text
    assert answer.json()["verdict"] in VERDICTS
    assert answer.json()["input"]["width"] == 64
    refused = requests.post(f"{url}/v1/detect", files={"image": b"no picture"}, data={"text": TEXT}, timeout=HANG_S)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_format")


@pytest.mark.parametrize(
    "controls",
    [
        {"X-Request-Timeout-Seconds": b"\xff"},
        {"X-Request-Timeout-Seconds": b"0.001"},
        {"X-Request-Disconnect-Disabled": b"\xff"},
        {"Serve-Multiplexed-Model-Id": b"\xff"},
        {"X-Session-Id": b"\xff"},
    ],
    ids=str,
)
def test_headers_that_control_ray_have_no_effect(served: tuple[str, Any], controls: dict[str, bytes]) -> None:
    answer = requests.post(
        f"{served[0]}/v1/detect", files={"image": draw_jpeg(1)}, data={"text": TEXT}, headers=controls, timeout=HANG_S
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        # Ray's uvicorn uses the address in this header as the caller's, but keeps the header.
        ({"X-Forwarded-For": "203.0.113.9"}, "comes from another"),
        ({"X-Forwarded-For": "127.0.0.1"}, "header x-forwarded-for"),
        ({"Via": "1.1 proxy"}, "header via"),
        ({"Origin": "https://evil.example"}, "another site's page"),
        ({"Host": "evil.example"}, "Host"),
    ],
    ids=str,
)
def test_without_keys_a_running_server_refuses_proxies_and_other_sites(
    served: tuple[str, Any], headers: dict[str, str], reason: str
) -> None:
    url, _ = served
    pair: Any = {"files": {"image": draw_jpeg(1)}, "data": {"text": TEXT}}
    refused = requests.post(f"{url}/v1/detect", **pair, headers=headers, timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "keys_required")
    assert reason in refused.json()["error"]["message"]
    assert requests.get(f"{url}/healthz", headers=headers, timeout=60).status_code == 200
    assert requests.post(f"{url}/v1/detect", **pair, headers={"Origin": url}, timeout=60).status_code == 200


@pytest.mark.parametrize("request_id", [None, b"mine-1", b"not mine", b"\xff"], ids=str)
def test_a_response_has_one_id_which_the_api_uses_too(served: tuple[str, Any], request_id: bytes | None) -> None:
    url, _ = served
    headers = {} if request_id is None else {"X-Request-ID": request_id}
    answer = requests.post(
        f"{url}/v1/detect", files={"image": draw_jpeg(1)}, data={"text": TEXT}, headers=headers, timeout=HANG_S
    )
    assert answer.raw.headers.getlist("x-request-id") == [answer.json()["id"]]
    assert (answer.json()["id"] == "mine-1") == (request_id == b"mine-1")


def _count(url: str, pattern: str) -> float:
    """Return the sum of the samples of /metrics that match."""
    return sum(float(value) for value in re.findall(pattern, requests.get(f"{url}/metrics", timeout=HANG_S).text, re.M))


def test_callers_that_hang_up_while_they_send_are_counted_as_499(served: tuple[str, Any]) -> None:
    url, _ = served
    statuses = r'^asap_requests_total{.*route="/v1/detect",status="%s"} (.+)$'
    failed, gone = _count(url, statuses % 500), _count(url, statuses % 499)
    head = (
        "POST /v1/detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{"
    )
    for number in range(1, 6):  # Ray ends the reading of a body in one of several ways
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as caller:
            caller.sendall(head.encode())
            wait_until(lambda: _count(url, r"^asap_requests_in_flight{.*} (.+)$") == 1)
        wait_until(lambda: _count(url, statuses % 499) + _count(url, statuses % 500) == gone + failed + number)  # noqa: B023
    assert _count(url, statuses % 500) == failed


def test_the_handle_returns_the_same_findings_as_http(served: tuple[str, Any]) -> None:
    url, handle = served
    pairs = [Pair(draw_jpeg(1), TEXT), Pair(b"no picture", TEXT), Pair(draw_jpeg(2), "")]
    findings = [response.result(timeout_s=HANG_S) for response in [handle.detect.remote(pair) for pair in pairs]]
    codes = [finding.error and finding.error.code for finding in findings]
    assert codes == [None, "unsupported_format", "text_missing"]
    assert len({(finding.limits, finding.familiarity_id) for finding in findings}) == 1
    answer = requests.post(
        f"{url}/v1/detect", files={"image": draw_jpeg(1)}, data={"text": TEXT}, timeout=HANG_S
    ).json()
    assert answer["score"] == pytest.approx(findings[0].score, abs=1e-5)


def test_pairs_that_arrive_together_get_the_findings_that_they_get_alone(served: tuple[str, Any]) -> None:
    _, handle = served
    pairs = [Pair(draw_jpeg(number), TEXT) for number in range(12)]
    findings = [response.result(timeout_s=HANG_S) for response in [handle.detect.remote(pair) for pair in pairs]]
    alone = [handle.detect.remote(pair).result(timeout_s=HANG_S) for pair in pairs]
    assert [finding.image_sha256 for finding in findings] == [finding.image_sha256 for finding in alone]
    assert [finding.score for finding in findings] == pytest.approx([finding.score for finding in alone], abs=1e-4)


def test_a_server_for_other_machines_needs_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    from serve.api.callers.keys import new_key
    from serve.app import build

    monkeypatch.delenv("ASAP_KEYS", raising=False)
    with pytest.raises(ConfigError, match=r"host '0\.0\.0\.0' can be reached from other machines, which needs keys"):
        build(ServeSettings(host="0.0.0.0"))
    monkeypatch.setenv("ASAP_KEYS", new_key("desk")[1])
    build(ServeSettings(host="0.0.0.0"))


@pytest.mark.parametrize(
    ("cpus", "options"), [(0, {"label_selector": {"ray.io/node-id": "!a1"}}), (8, {})], ids=["no CPUs", "CPUs"]
)
def test_the_api_stays_off_a_head_without_cpus(monkeypatch: pytest.MonkeyPatch, cpus: int, options: Any) -> None:
    from serve.app import build

    head = {"Alive": True, "NodeID": "a1", "Resources": {"node:__internal_head__": 1.0, "CPU": cpus}}
    worker = {"Alive": True, "NodeID": "a2", "Resources": {"CPU": 8}}
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.nodes", lambda: [worker, head])
    ingress = build(ServeSettings())._bound_deployment
    assert ingress._replica_config.ray_actor_options == {"num_cpus": 0} | options


def test_detectors_get_the_version_of_the_model_that_is_there_unless_this_machine_lacks_it(
    tmp_path: Path, model_folder: Path
) -> None:
    from serve.app import build

    def version(model: Path | str) -> Any:
        detector = build(ServeSettings(model=str(model)))._bound_deployment.init_args[2]._bound_deployment
        return detector.init_args[1]

    assert version(model_folder) == folder_version(model_folder) != version("demo") == folder_version("demo")
    assert version(tmp_path / "of another machine") is None
    with pytest.raises(CheckpointError, match="config"):
        version(tmp_path)


@pytest.mark.slow
def test_a_replica_that_starts_after_the_model_was_replaced_is_refused_and_says_so(
    served: tuple[str, Any], tmp_path: Path, model_folder: Path
) -> None:
    from ray import serve

    from serve.app import build

    model = Path(shutil.copytree(model_folder, tmp_path / "model"))
    settings = ServeSettings(model=str(model), max_replicas=1, detector_cpus=0.5, decoders=1, deadline_s=5, drain_s=5)
    serve.run(build(settings), name="pinned", route_prefix="/pinned")
    (model / "policy.json").write_text(json.dumps(dataclasses.asdict(Policy(manipulated=0.9))))
    (name,) = [
        each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if "pinned#Detector" in each["name"]
    ]
    ray.kill(ray.get_actor(name, namespace="serve"))

    def message() -> str:
        return serve.status().applications["pinned"].deployments["Detector"].message

    wait_until(lambda: "has changed since it was deployed" in message())
    serve.delete("pinned")


@pytest.mark.parametrize("delay_s", [0, 5, 60])
def test_the_look_back_period_is_longer_than_the_metrics_interval(delay_s: float) -> None:
    from serve.app import build

    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # Ray will refuse the options that it warns about
        ingress = build(ServeSettings(upscale_delay_s=delay_s))._bound_deployment
    detector = ingress.init_args[2]._bound_deployment
    scaling = detector._deployment_config.autoscaling_config
    assert scaling.metrics_interval_s < scaling.look_back_period_s
    assert scaling.metrics_interval_s <= max(1, delay_s)


@pytest.mark.slow
def test_health_checks_are_answered_during_a_pass_that_takes_longer_than_they_may(served: tuple[str, Any]) -> None:
    from ray import serve

    from asap.preprocessing.images import prepare_image
    from serve.inference.detector import Detector

    class SlowDetector(Detector):
        """A detector whose passes take as long as six health checks may."""

        def __init__(self, settings: ServeSettings) -> None:
            super().__init__(settings)
            fuse = self._predictor._model.fuse

            def fuse_slowly(*arguments: Any) -> Any:
                time.sleep(6)
                return fuse(*arguments)

            self._predictor._model.fuse = fuse_slowly  # type: ignore[method-assign]

    # Three checks that are not answered in a second end a replica, and its requests with it.
    options = {"health_check_period_s": 0.5, "health_check_timeout_s": 1, "ray_actor_options": {"num_cpus": 0.5}}
    slow = serve.deployment(name="SlowDetector", **options)(SlowDetector)
    handle: Any = serve.run(slow.bind(ServeSettings()), name="slow", route_prefix=None)
    side = handle.about.remote().result(timeout_s=HANG_S).image_size
    pair = prepare_image(Image.open(io.BytesIO(draw_jpeg(1))), side), TEXT
    first, second = (handle.detect.remote([pair]).result(timeout_s=HANG_S) for _ in range(2))
    assert first.worker == second.worker
    assert [answer.results[0].error for answer in (first, second)] == [None, None]
    serve.delete("slow")


def test_an_update_starts_new_replicas_before_it_stops_old_ones_and_a_full_queue_says_when_to_retry() -> None:
    from serve.app import build

    api = build(ServeSettings(api_replicas=3))._bound_deployment
    config = api._deployment_config
    assert config.num_replicas == 3
    assert (config.backpressure_config.status_code, config.backpressure_config.retry_after_s) == (503, 2)
    for deployment in (api, api.init_args[2]._bound_deployment):
        assert deployment._deployment_config.max_surge_percent == 100
    assert config.max_queued_requests > 0

"""The API against requests generated from its own OpenAPI document, and against corrupt pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, openapi
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from asap.predictor import Predictor
from serve.api.callers.keys import Keyring, new_key
from tests.support.mutations import BROKE, FORMATS, mutated
from tests.support.serving import TEXT, LocalDetector, api, encoded
from tests.support.waiting import HANG_S

KEY, LINE = new_key("fuzz", ("detect", "metrics", "jobs"))
PICTURE = encoded()
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    backend = LocalDetector(Predictor.from_folder("demo", "cpu"))
    with api(backend, Keyring.parse([LINE], "here"), key_rate=1e9, max_text_chars=500) as client:
        yield client


@pytest.fixture(scope="module")
def described(client: Any) -> Any:
    async def requests_only(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":  # the client starts and ends the application
            await client.app(scope, receive, send)

    schema = openapi.from_dict(client.app.openapi())
    schema.app = requests_only

    @schema.hook
    def map_body(context: Any, body: Any) -> Any:
        """Replace every other picture by a real one, so that the text beside it reaches the model."""
        if isinstance(body, dict) and isinstance(image := body.get("image"), str | bytes) and len(image) % 2:
            return body | {"image": PICTURE if isinstance(image, bytes) else base64.b64encode(PICTURE).decode()}
        return body

    return schema


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *[("POST", path, mode) for path in ("/v1/detect", "/v1/detect/batch", "/v1/jobs") for mode in GenerationMode],
        ("POST", "/v1/jobs/{id}/cancel", GenerationMode.POSITIVE),
        *[
            ("GET", path, GenerationMode.POSITIVE)
            for path in (
                "/v1/models",
                "/v1/limits",
                "/metrics",
                "/healthz",
                "/readyz",
                "/v1/jobs",
                "/v1/jobs/{id}",
                "/v1/jobs/{id}/results",
                "/v1/jobs/{id}/errors",
            )
        ],
    ],
)
def test_responses_to_any_request_follow_the_openapi_document(
    described: Any, method: str, path: str, mode: GenerationMode
) -> None:
    @given(case=described[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    def check(case: Any) -> None:
        answer = case.call(headers={"Authorization": f"Bearer {KEY}"}, timeout=HANG_S)
        # A picture that cannot be decoded fits the schema and is refused all the same. In a form every field is text,
        # and a pair of a batch that does not fit is refused in its own item.
        is_lenient = case.media_type == "multipart/form-data" or path.endswith("/batch")
        excluded = [positive_data_acceptance, *([negative_data_rejection] if is_lenient else [])]
        case.validate_response(answer, excluded_checks=excluded)

    check()


@pytest.mark.slow
def test_corrupt_pictures_are_detected_or_refused_and_break_no_decoder(client: Any) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    described = client.app.openapi()
    seen = set()
    for kind, data in mutated(300, seed=1):
        answer = client.post("/v1/detect", files={"image": data}, data={"text": TEXT}, headers=headers)
        assert answer.status_code in (200, 400, 413), answer.text
        assert BROKE not in answer.text, (kind, len(data))  # nor did the decoder time out
        jsonschema.validate(answer.json(), _schema(described, answer.status_code))
        seen.add((kind, answer.status_code))
    assert seen >= {(kind, 400) for kind in FORMATS}
    assert seen >= {(kind, 200) for kind in FORMATS if kind != "PNG"}  # a PNG has checksums of its pixels


def _schema(described: dict[str, Any], status: int) -> dict[str, Any]:
    """Return the schema of a response to POST /v1/detect."""
    (content,) = described["paths"]["/v1/detect"]["post"]["responses"][str(status)]["content"].values()
    return content["schema"] | {"components": described["components"]}

"""The OpenAPI document as programs read it: codes, keys, and one class for each request body."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterator
from typing import Any, get_args

import jsonschema
import pytest
from openapi_spec_validator import validate

from asap.errors import InputError
from serve.api.callers.keys import Keyring, new_key
from serve.api.callers.rates import RATE_HEADERS
from serve.api.openapi import ERROR_EXAMPLE, success_of
from serve.api.reference import reference_page
from serve.errors import MEANINGS, ErrorCode, refusal
from serve.schemas import MAX_URI_CHARS, ErrorResponse
from tests.support.serving import LocalDetector, api


def _document(keyring: Keyring | None = None) -> dict[str, Any]:
    with api(LocalDetector(None), keyring) as client:  # type: ignore[arg-type]
        document: dict[str, Any] = client.get("/openapi.json").json()
    return document


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return _document(Keyring.parse([new_key("desk")[1]], "here"))


def _inputs(kind: type[InputError]) -> Iterator[type[InputError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _inputs(narrower)


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    validate(document)


def test_operations_have_names_that_generated_clients_can_use(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert sorted(names) == [
        "cancel_job", "detect", "detect_batch", "healthz", "job_errors", "job_results", "limits", "list_jobs",
        "metrics", "models", "readyz", "show_job", "submit_job",
    ]  # fmt: skip


def test_the_document_lists_every_error_code_with_its_meaning(document: dict[str, Any]) -> None:
    code = document["components"]["schemas"]["ErrorBody"]["properties"]["code"]
    assert set(code["enum"]) == set(get_args(ErrorCode)) == set(MEANINGS)
    assert all(f"`{name}`: {meaning}" in code["description"] for name, meaning in MEANINGS.items())


@pytest.mark.parametrize("kind", list(_inputs(InputError)))
def test_every_error_of_a_pair_has_a_code_of_the_document(kind: type[InputError]) -> None:
    assert kind.code in MEANINGS
    refused = refusal(kind("a problem"))
    assert refused.code == kind.code
    assert MEANINGS[refused.code].startswith(f"{refused.status}: ")


def test_a_code_of_a_later_version_becomes_a_known_one() -> None:
    class Later(InputError):
        code = "of_a_later_version"

    refused = refusal(Later("a problem"))
    assert (refused.status, refused.code, refused.message) == (400, "input_error", "a problem")
    del Later


@pytest.mark.parametrize("has_keys", [True, False])
def test_the_document_says_which_routes_take_a_key(document: dict[str, Any], has_keys: bool) -> None:
    described = document if has_keys else _document()
    (name,) = described["components"]["securitySchemes"]
    scheme = described["components"]["securitySchemes"][name]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    security = {
        operation["operationId"]: operation.get("security")
        for methods in described["paths"].values()
        for operation in methods.values()
    }
    needed = [{name: []}] if has_keys else [{name: []}, {}]
    assert security == {name: None if name in ("healthz", "readyz") else needed for name in security}


def test_the_document_names_the_headers_of_rates_and_repetitions(document: dict[str, Any]) -> None:
    for path in ("/v1/detect", "/v1/detect/batch"):
        post = document["paths"][path]["post"]
        assert "Idempotency-Key" in {parameter["name"] for parameter in post["parameters"]}
        assert set(RATE_HEADERS) <= set(post["responses"]["200"]["headers"])
        assert "Retry-After" in post["responses"]["429"]["headers"]
        assert "Retry-After" not in post["responses"]["200"]["headers"]
    assert "headers" not in document["paths"]["/healthz"]["get"]["responses"]["200"]


def test_a_request_of_one_pair_is_one_class_with_a_text(document: dict[str, Any]) -> None:
    """Generators make a class of a named object, but of alternatives within it, classes that lack its fields."""
    schemas = document["components"]["schemas"]
    content = document["paths"]["/v1/detect"]["post"]["requestBody"]["content"]
    named = {kind: schemas[body["schema"]["$ref"].rpartition("/")[2]] for kind, body in content.items()}
    assert set(named["application/json"]["properties"]) == {"image", "uri", "text"}
    assert set(named["multipart/form-data"]["properties"]) == {"image", "text"}
    for schema in named.values():
        assert (schema["type"], schema["additionalProperties"]) == ("object", False)
        assert "text" in schema["required"]
        assert not {"oneOf", "anyOf", "allOf"} & set(schema)
    batch = document["paths"]["/v1/detect/batch"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    items = schemas[batch["$ref"].rpartition("/")[2]]["properties"]["items"]
    pair = schemas[items["items"]["$ref"].rpartition("/")[2]]
    assert set(pair["properties"]) == {"image", "uri", "text", "custom_id"}
    assert pair["properties"]["uri"]["anyOf"][0]["maxLength"] == MAX_URI_CHARS
    assert (pair["type"], pair["additionalProperties"]) == ("object", False)


def test_the_reference_has_a_command_for_each_route_and_each_error_once(document: dict[str, Any]) -> None:
    page = html.unescape(reference_page(document))
    commands = re.findall(r"<code>(curl .*?)</code>", page)
    paths = [shlex.split(command)[1] for command in commands]
    assert {path.removeprefix("http://127.0.0.1:8000") for path in paths} == set(document["paths"])
    methods = set()
    for command in commands:
        words = shlex.split(command)
        path = words[1].removeprefix("http://127.0.0.1:8000")
        method = "post" if {"-d", "-F", "-X"} & set(words) else "get"
        methods.add((method, path))
        assert ("Bearer $ASAP_KEY" in command) == ("security" in document["paths"][path][method])
        if "-d" in words:
            json.loads(words[words.index("-d") + 1])
    assert methods == {(method, path) for path, operations in document["paths"].items() for method in operations}
    assert all(page.count(f"<td><code>{code}</code></td>") == 1 for code in MEANINGS)
    assert "Bearer" not in " ".join(re.findall(r"<code>(curl .*?)</code>", reference_page(_document())))


def test_every_response_of_json_has_an_example_that_follows_its_schema(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    examples = {
        operation["operationId"]: content["application/json"]
        for methods in document["paths"].values()
        for operation in methods.values()
        if "application/json" in (content := success_of(operation).get("content", {}))
    }
    assert set(examples) == {
        "detect", "detect_batch", "models", "limits", "healthz", "readyz", "submit_job", "list_jobs", "show_job",
        "cancel_job",
    }  # fmt: skip
    for content in examples.values():
        jsonschema.validate(content["example"], content["schema"] | {"components": {"schemas": schemas}})
    ErrorResponse.model_validate(ERROR_EXAMPLE)


def test_the_examples_of_the_document_follow_it(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in ("DetectRequest", "DetectForm", "BatchRequest"):
        for example in schemas[name]["examples"]:
            jsonschema.validate(example, {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}})

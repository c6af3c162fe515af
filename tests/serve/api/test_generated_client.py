"""A client that is generated from the OpenAPI document sends a request to every route.

The generator, `openapi-python-client`, asks for an older typer than this project has, so it is not among the packages
of the tests. Install it in an environment of its own and put it on the PATH to run this test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import requests

from serve.api.callers.keys import Keyring, new_key
from tests.support.pictures import draw_jpeg
from tests.support.serving import FixedDetector, served
from tests.support.waiting import HANG_S

GENERATOR = shutil.which("openapi-python-client")
CALLS = """
import base64, io, sys, uuid
from generated import AuthenticatedClient, models
from generated.api.default import detect, detect_batch, healthz, limits, metrics, models as list_models, readyz
from generated.types import File

url, key, path = sys.argv[1:]
client = AuthenticatedClient(url, token=key)
picture = open(path, "rb").read()

one = models.DetectRequest(text="A river", image=base64.b64encode(picture).decode())
found = detect.sync(client=client, body=one, idempotency_key="1")
assert isinstance(found, models.Detection) and found.verdict == "authentic", found
again = detect.sync_detailed(client=client, body=one, idempotency_key="1")
assert again.parsed.id == found.id and again.headers["idempotency-replayed"] == "true"

form = models.DetectForm(image=File(io.BytesIO(picture), "a.jpg", "image/jpeg"), text="A quay")
assert detect.sync(client=client, body=form).input_.width == found.input_.width

wrong = detect.sync(client=client, body=models.DetectRequest(text="A river", image="no base64!"))
assert isinstance(wrong, models.ErrorResponse) and wrong.error.code == "base64_invalid", wrong
nobody = detect.sync_detailed(client=AuthenticatedClient(url, token="unknown"), body=one)
assert nobody.status_code == 401 and nobody.parsed.error.code == "unauthorized"

pairs = [models.BatchPair(text="A bridge", image=one.image, custom_id="a"), models.BatchPair(text="A bridge")]
first, second = detect_batch.sync(client=client, body=models.BatchRequest(items=pairs)).items
assert (first.status, first.custom_id, first.result.verdict) == (200, "a", "authentic")
assert (second.status, second.error.code) == (422, "invalid_field")

assert list_models.sync(client=client).models[0].model_id == "m"
assert limits.sync(client=client).key.name == "desk"
assert healthz.sync(client=client).status == readyz.sync(client=client).status == "ok"
assert b"asap_requests_total" in metrics.sync_detailed(client=client).content
"""


@pytest.mark.slow
@pytest.mark.skipif(GENERATOR is None, reason="openapi-python-client is not installed")
def test_a_generated_client_works_on_every_route(tmp_path: Path) -> None:
    assert GENERATOR is not None
    key, line = new_key("desk")
    tools = Path(GENERATOR).parent
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)}
    (tmp_path / "a.jpg").write_bytes(draw_jpeg(1))
    (tmp_path / "calls.py").write_text(CALLS)
    with served(FixedDetector(), Keyring.parse([line], "here")) as url:
        (tmp_path / "openapi.json").write_text(requests.get(f"{url}/openapi.json", timeout=HANG_S).text)
        generate = [GENERATOR, "generate", "--path", "openapi.json", "--output-path", "generated", "--meta", "none"]
        made = subprocess.run(generate, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG_S)
        assert made.returncode == 0, made.stdout + made.stderr
        assert "warning" not in (made.stdout + made.stderr).lower()
        calls = [str(tools / "python"), "calls.py", url, key, "a.jpg"]
        called = subprocess.run(calls, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert called.returncode == 0, called.stderr

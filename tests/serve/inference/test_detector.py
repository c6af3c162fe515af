"""A detector in this process, around a small model: order of work, cancellation, and the copy of its model."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from asap.errors import CheckpointError
from asap.finding import Finding
from asap.limits import Limits
from asap.policy import Policy
from asap.preprocessing.images import PreparedImage
from asap.weights.model_folder import folder_version, load_folder
from serve.settings import ServeSettings
from tests.support.event_loop import in_event_loop
from tests.support.uploads import upload_folder

if TYPE_CHECKING:
    from serve.inference.detector import Detector, Prepared

pytestmark = pytest.mark.usefixtures("one_thread")
PASSES = 40
LONG = "a " * 50 * PASSES
QUICK = "a crowd"


@pytest.fixture
def detector(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Detector:
    from serve.inference.detector import Detector

    replica = SimpleNamespace(replica_id=SimpleNamespace(unique_id="one"))
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: replica)
    return Detector(ServeSettings(model=str(model_folder), device="cpu", batch_size=2))


def replace_part(model: Path, name: str) -> None:
    """Replace a file of a model folder by one that says something else."""
    if name == "limits.json":
        (model / name).write_text(Limits(made_from="drawings").to_json())
    elif name == "policy.json":
        (model / name).write_text(json.dumps(dataclasses.asdict(Policy(manipulated=0.9))))
    else:
        values = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(values | {"model_max_length": 77}))


def pair(text: str) -> Prepared:
    return PreparedImage(pixels=np.full((32, 32, 3), 128, np.uint8), width=32, height=32, sha256=None), text


async def findings_of(detector: Detector, *texts: str) -> list[Finding]:
    found = (await detector.detect([pair(text) for text in texts])).results
    return [finding for finding in found if isinstance(finding, Finding)]


@in_event_loop
async def test_each_pair_gets_its_own_finding_however_long_its_text_is(detector: Detector) -> None:
    texts = [QUICK, LONG, "happy people", ""]
    findings = await findings_of(detector, *texts)
    alone = [(await findings_of(detector, text))[0] for text in texts]
    assert [finding.error and finding.error.code for finding in findings] == [None, None, None, "text_missing"]
    assert [one.score for one in findings[:3]] == pytest.approx([one.score for one in alone[:3]], abs=1e-5)


@in_event_loop
async def test_a_picture_prepared_for_another_model_size_gets_the_card_of_this_model(detector: Detector) -> None:
    small = PreparedImage(pixels=np.full((16, 16, 3), 128, np.uint8), width=16, height=16, sha256=None)
    _, (found, model) = await detector.detect([pair(QUICK), (small, QUICK)])
    assert isinstance(found, Finding)
    assert found.score is not None
    assert not isinstance(model, Finding)
    assert model == await detector.about()
    assert model.image_size == 32
    assert (await detector.detect([(small, QUICK)])).results == [model]


@in_event_loop
async def test_a_broken_device_ends_the_process_so_that_another_one_can_start(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, process_end: type[BaseException]
) -> None:
    def break_down(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(detector._predictor._model, "fuse", break_down)
    with pytest.raises(process_end):
        await findings_of(detector, QUICK)


@in_event_loop
async def test_a_quick_pair_does_not_wait_for_all_passes_of_a_long_text(detector: Detector) -> None:
    long = asyncio.create_task(findings_of(detector, LONG))
    await asyncio.sleep(0)  # so it is first in the queue
    await findings_of(detector, QUICK)
    assert not long.done()
    (finding,) = await long
    assert f"it was analyzed in {PASSES} passes" in finding.warnings[0]


@in_event_loop
async def test_a_cancelled_pair_takes_no_further_pass(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, passes = threading.Event(), threading.Event(), 0
    fuse = detector._predictor._model.fuse

    def held(*arguments: Any) -> Any:
        nonlocal passes
        passes += 1
        begun.set()
        go_on.wait()
        return fuse(*arguments)

    monkeypatch.setattr(detector._predictor._model, "fuse", held)
    long, waiting, quick = (asyncio.create_task(findings_of(detector, text)) for text in (LONG, LONG, QUICK))
    await asyncio.to_thread(begun.wait)
    long.cancel()
    waiting.cancel()
    go_on.set()
    assert len(await quick) == 1
    assert (long.cancelled(), waiting.cancelled()) == (True, True)
    assert passes == 2, "the pass of the long text that had begun, and the pass of the quick pair"


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let detectors of this process take themselves for replicas."""
    one = SimpleNamespace(replica_id=SimpleNamespace(unique_id="one"))
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: one)


@pytest.mark.usefixtures("replica")
@pytest.mark.parametrize("name", ["policy.json", "tokenizer/tokenizer_config.json", "limits.json"])
def test_a_replica_that_finds_another_model_than_was_deployed_does_not_start(
    tmp_path: Path, model_folder: Path, name: str
) -> None:
    from serve.inference.detector import Detector

    model = Path(shutil.copytree(model_folder, tmp_path / "model"))
    settings = ServeSettings(model=str(model), device="cpu", batch_size=2)
    version = folder_version(model)
    assert folder_version(model, load_folder(model).model_id) == version
    (model / "README.md").write_text("a card decides nothing")
    Detector(settings, version)
    replace_part(model, name)
    sentence = (
        rf"model {model} has changed since it was deployed, or differs on the machine .*, and was {version}\. Put"
    )
    with pytest.raises(CheckpointError, match=sentence):
        Detector(settings, version)
    Detector(settings)


@pytest.mark.usefixtures("replica", "scratch")
def test_a_replica_refuses_a_model_of_a_bucket_that_was_replaced_since_it_was_deployed(
    bucket: str, tmp_path: Path, model_folder: Path
) -> None:
    from serve.inference.detector import Detector

    model = Path(shutil.copytree(model_folder, tmp_path / "model"))
    address = upload_folder(model, bucket, "models/small")
    settings = ServeSettings(model=address, device="cpu", batch_size=2)
    version = folder_version(address)
    (model / "README.md").write_text("a card decides nothing")
    upload_folder(model, bucket, "models/small")
    Detector(settings, version)
    replace_part(model, "policy.json")
    upload_folder(model, bucket, "models/small")
    with pytest.raises(CheckpointError, match=f"model {address} has changed since it was deployed"):
        Detector(settings, version)
    with pytest.raises(CheckpointError, match="does not exist, or is none"):
        folder_version(f"s3://{bucket}/models/none")


@pytest.mark.usefixtures("scratch")
def test_the_model_of_a_bucket_is_copied_and_detects_as_the_folder_does(
    bucket: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve.inference.detector import Detector

    replica = SimpleNamespace(replica_id=SimpleNamespace(unique_id="one"))
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: replica)
    address = upload_folder(model_folder, bucket, "models/small")
    cards = [
        asyncio.run(Detector(ServeSettings(model=model, device="cpu", batch_size=2)).about())
        for model in (address, str(model_folder))
    ]
    assert cards[0] == cards[1]
    with pytest.raises(CheckpointError, match="does not exist, or is none"):
        Detector(ServeSettings(model=f"s3://{bucket}/models/none", device="cpu"))

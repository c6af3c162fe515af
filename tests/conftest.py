"""Fixtures that many test files use: one Ray, one S3 server, one small model, a few images."""

from __future__ import annotations

import gc
import json
import logging
import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import boto3
import pytest

from tests.support.busy import hold_cpus
from tests.support.faulty_store import FaultyStore, faulty_store
from tests.support.pictures import CAPTIONS, draw_jpeg
from tests.support.quirky_store import QuirkyStore, quirky_store
from tests.support.waiting import wait_until

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how often Ray Train polls reports; the default is 2
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")  # the default is ten seconds
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models only wait for threads: torch's and each other's
LONGEST_FIRST = (
    "end_to_end/test_train_kills", "end_to_end/test_stops", "end_to_end/test_train_elastic", "jobs/train/test_run",
    "end_to_end/test_model_page",
    "jobs/scan/test_run", "jobs/scan/test_faults", "end_to_end/test_scan_kills", "jobs/train/data/test_stream",
    "jobs/policy/test_repolicy", "jobs/scan/test_retry", "jobs/evaluate/test_run", "serve/test_app",
    "jobs/train/test_export", "jobs/train/test_trainer", "jobs/train/test_trainer_workers",
)  # fmt: skip
"""The slowest test files. Two processes divide the files; these run first, so that both end at about the same time."""
TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {TESTS / f"{name}.py": position for position, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Collect garbage after a test with Ray.

    pytest keeps Ray's log records until a test is over. Their tracebacks keep actors alive, and these hold CPUs.
    """
    result = yield
    if "ray_here" in getattr(item, "fixturenames", ()):
        gc.collect()
    return result


class _ProcessEnd(BaseException):
    pass


@pytest.fixture
def process_end(monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    """Replace `os._exit` with a function that raises this exception, and return the exception."""

    def end(code: int) -> None:
        raise _ProcessEnd(code)

    monkeypatch.setattr("os._exit", end)
    return _ProcessEnd


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one torch thread: small models are fastest with it, and repeatable to the bit."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Run a real S3 server over HTTP, set the environment so that AWS tools find it, and yield its endpoint."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    previous = {name: os.environ.get(name) for name in (*S3_ENVIRONMENT, "AWS_ENDPOINT_URL", "AWS_PROFILE")}
    os.environ.update(S3_ENVIRONMENT, AWS_ENDPOINT_URL=f"http://{host}:{port}")
    os.environ.pop("AWS_PROFILE", None)
    boto3.DEFAULT_SESSION = None
    yield os.environ["AWS_ENDPOINT_URL"]
    server.stop()
    for name, value in previous.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have this process keep its temporary files, such as copies of models, in a folder of the test; return it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("asap.storage.folder_cache._HELD", {})
    return folder


@pytest.fixture
def bucket(s3: str, request: pytest.FixtureRequest) -> str:
    """Create an empty bucket and return its name."""
    name = f"b{abs(hash(request.node.nodeid)):x}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def faulty(s3: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """Run a proxy before the S3 server, which this process uses instead. The bucket exists."""
    from asap.storage import s3 as s3_module

    with faulty_store(s3) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        s3_module.s3_client.cache_clear()
        yield store
        s3_module.s3_client.cache_clear()


@pytest.fixture
def quirky(s3: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[QuirkyStore]:
    """Run a proxy without quirks before the S3 server, which this process uses instead. The bucket exists."""
    from asap.storage import s3 as s3_module

    with quirky_store(s3) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        s3_module.s3_client.cache_clear()
        yield store
        s3_module.s3_client.cache_clear()


@pytest.fixture(scope="session")
def ray_here(s3: str) -> Iterator[None]:
    """Run a Ray cluster of two CPUs for all tests; its workers find the S3 server."""
    from jobs.cluster import ray_running

    with ray_running(num_cpus=2, object_store_memory=300 * 2**20):
        yield


@pytest.fixture
def busy(ray_here: None) -> Iterator[None]:
    """Have another job hold all CPUs of the cluster."""
    import ray

    holder = hold_cpus()
    yield
    ray.kill(holder)
    wait_until(lambda: ray.available_resources().get("CPU") == 2)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model of 48 channels and 32 px, with random weights and a tokenizer, and return its folder."""
    import torch

    from asap.model.asap import Asap
    from asap.model.config import ModelConfig
    from asap.preprocessing.text import train_tokenizer
    from asap.weights.model_folder import save

    tokenizer = train_tokenizer(CAPTIONS, 200)
    config = ModelConfig.tiny(
        width=48, image_layers=2, text_layers=1, fusion_layers=1, image_size=32, image_mlp_width=96,
        text_mlp_width=96, vocab_size=len(tokenizer), embed_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    return save(Asap(config), tmp_path_factory.mktemp("model") / "small", tokenizer=tokenizer)


@pytest.fixture(scope="session")
def jpeg() -> Callable[..., bytes]:
    """Return `draw_jpeg`."""
    return draw_jpeg


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Write a folder with images and a JSON Lines manifest of four pairs, a.jsonl, and return the folder."""
    folder = tmp_path / "corpus"
    (folder / "images").mkdir(parents=True)
    records = []
    for number, caption in enumerate(CAPTIONS):
        (folder / f"images/{number}.jpg").write_bytes(draw_jpeg(number))
        records.append({"custom_id": f"pair-{number}", "image": f"images/{number}.jpg", "text": caption})
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder

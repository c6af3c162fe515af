"""Folders and files in the working folder that have the names of the packages."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from asap.packages import FOLDER, import_packages
from asap.preprocessing.images import DEFAULT_LIMITS
from serve.inference.decoder_pool import DecoderPool
from tests.support.pictures import draw_jpeg
from tests.support.serving import TEXT, free_port
from tests.support.small_run import draw_corpus, settings_for
from tests.support.waiting import HANG_S

ASAP = Path(sys.executable).parent / "asap"
RAISES = "raise RuntimeError('this is not the package')\n"
TRAIN = """
import sys
from jobs.train.settings import TrainSettings
from jobs.train.run import train
train(TrainSettings.model_validate_json(sys.argv[1]))
"""
NAMES = ("asap", "jobs", "serve")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a package of each name that breaks whoever imports it."""
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(RAISES)
    return tmp_path


@pytest.mark.parametrize("kind", ["folder", "package", "module"])
def test_the_decoder_imports_nothing_from_the_working_folder(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        if kind != "module":
            (tmp_path / name).mkdir()
        path = {"folder": f"{name}/decoder.txt", "package": f"{name}/__init__.py", "module": f"{name}.py"}[kind]
        (tmp_path / path).write_text(RAISES)
    monkeypatch.chdir(tmp_path)
    pool = DecoderPool(1, DEFAULT_LIMITS, timeout_s=HANG_S)
    try:
        assert asyncio.run(pool.prepare(draw_jpeg(1), 32)).width == 64
    finally:
        pool.close()


def test_the_packages_are_found_from_their_folder_where_nothing_is_installed() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import asap.packages as packages; packages.import_packages()"
    subprocess.run([sys.executable, "-I", "-S", "-c", code, str(FOLDER)], check=True)


def test_a_package_stays_once_it_is_imported(folder: Path) -> None:
    code = (
        "import sys\nfrom asap.packages import FOLDER, import_packages\nimport_packages()\n"
        "sys.path.insert(0, sys.argv[1])\nimport jobs.errors, serve.errors, asap.errors\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(folder)], check=True, cwd=folder)


def test_a_missing_package_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serve", None)
    with pytest.raises(ImportError, match="serve"):
        import_packages()


def test_detect_works_beside_folders_with_the_names_of_the_packages(folder: Path, model_folder: Path) -> None:
    (folder / "photo.jpg").write_bytes(draw_jpeg(1))
    command = [ASAP, "detect", "photo.jpg", "--text", TEXT, "--model", str(model_folder), "--json"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["error_code"] is None


@pytest.mark.slow
def test_a_scan_works_beside_folders_with_the_names_of_the_packages(
    folder: Path, corpus: Path, model_folder: Path
) -> None:
    command = [ASAP, "scan", str(corpus / "a.jsonl"), "--out", "jobs", "--model", str(model_folder)]
    subprocess.run(command, cwd=folder, check=True, timeout=HANG_S)
    assert (folder / "jobs/a/_SUCCESS").exists()


@pytest.mark.drill
def test_training_works_beside_folders_with_the_names_of_the_packages(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = settings_for(draw_corpus(tmp_path_factory), "run")
    command = [sys.executable, "-P", "-c", TRAIN, settings.model_dump_json()]
    subprocess.run(command, cwd=folder, check=True, timeout=HANG_S)
    assert (folder / "run/model/policy.json").exists()


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    """The URL of a running `asap serve`."""
    port = free_port()
    change = ("api_replicas=1", "max_replicas=1", "decoders=1", "detector_cpus=0.5", "deadline_s=300", "drain_s=300")
    command = [ASAP, "serve", "--port", str(port), *(part for value in change for part in ("--set", value))]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert f"http://127.0.0.1:{port}/" in process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.mark.drill
def test_the_server_works_beside_folders_with_the_names_of_the_packages(url: str) -> None:
    files = {"image": draw_jpeg(1)}
    headers = {"x-request-timeout-seconds": "0.001"}  # dropped if the proxy has loaded `serve.proxy`
    answer = requests.post(f"{url}/v1/detect", files=files, data={"text": TEXT}, headers=headers, timeout=HANG_S)
    assert answer.status_code == 200, answer.text

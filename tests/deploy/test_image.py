"""The Dockerfile and the lock of the image. Its Python steps run in a fresh environment, without a Docker daemon."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PINNED = re.compile(r"^([a-z0-9._-]+)==(\S+)", re.MULTILINE)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(lock: str) -> set[tuple[str, str]]:
    """Return the names and versions that a lock file holds."""
    return set(PINNED.findall((ROOT / lock).read_text()))


def instructions(kind: str) -> list[str]:
    """Return the arguments of the Dockerfile's instructions of a kind, with continued lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.removeprefix(f"{kind} ").strip() for line in joined.splitlines() if line.startswith(f"{kind} ")]


def test_the_lock_of_the_image_has_the_tested_versions() -> None:
    assert pins("requirements.runtime.lock") < pins("requirements.lock")


def test_the_lock_of_the_image_has_every_dependency_and_nothing_that_only_tests_need() -> None:
    names = {name for name, _ in pins("requirements.runtime.lock")}
    for requirement in PROJECT["project"]["dependencies"]:
        assert re.match(r"[A-Za-z0-9_-]+", requirement)[0].lower() in names
    assert not {"pytest", "moto", "ruff", "mypy", "selenium", "locust", "schemathesis", "duckdb"} & names


def test_the_lock_of_the_image_has_a_hash_for_each_package_and_names_no_index() -> None:
    text = (ROOT / "requirements.runtime.lock").read_text()
    assert text.count("--hash=sha256:") >= len(pins("requirements.runtime.lock"))
    assert "://" not in text
    assert "index" not in text.lower().replace("index-", "")


def test_the_base_is_named_by_whoever_builds_and_never_by_a_tag_that_moves() -> None:
    assert instructions("ARG") == ["BASE"]
    assert instructions("FROM") == ["${BASE}"]
    assert "@sha256:" in (ROOT / "deploy/README.md").read_text()


def test_what_the_dockerfile_copies_exists_and_reaches_the_builder() -> None:
    sent = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    for copied in instructions("COPY"):
        for source in [word for word in copied.split() if not word.startswith("--")][:-1]:
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] in sent


def test_the_image_has_the_variables_that_the_launcher_and_nvidias_runtime_read() -> None:
    variables = dict(word.split("=") for line in instructions("ENV") for word in line.split())
    assert variables["HOME"] == f"/home/{instructions('USER')[0]}"
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert "compute" in variables["NVIDIA_DRIVER_CAPABILITIES"]


def test_the_supervisor_and_the_shipping_of_logs_can_be_run() -> None:
    for name in ("supervise", "ship_logs.py"):
        assert os.access(ROOT / "deploy" / name, os.X_OK)


@pytest.mark.drill
def test_the_steps_of_the_image_work_in_a_fresh_environment(tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    folder = tmp_path / "asap-ray"
    folder.mkdir()
    for copied in instructions("COPY")[:-2]:  # the last two go elsewhere
        *sources, _ = copied.split()
        for source in sources:
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, folder / source)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "RAY_"))}
    shell = clean | {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    steps = [step for step in instructions("RUN") if step.startswith("python ")]
    assert len(steps) == 2
    for step in (*steps, "asap --help", "ray --version", "serve --help"):
        subprocess.run(["bash", "-c", step], cwd=folder, env=shell, check=True)
    imports = "import serve.app, jobs.scan.run, jobs.train.run, ray.autoscaler._private.aws.node_provider"
    subprocess.run(["python", "-c", imports], cwd=tmp_path, env=shell, check=True)
    missing = subprocess.run(["python", "-c", "import pytest"], cwd=tmp_path, env=shell, check=False, stderr=-3)
    assert missing.returncode == 1

"""The example `cluster.yaml` for Ray's cluster launcher."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())


@pytest.fixture
def cluster() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def test_rays_launcher_accepts_the_file(cluster: dict[str, Any]) -> None:
    jsonschema.validate(cluster, SCHEMA)


def test_rays_launcher_refuses_a_misspelled_key(cluster: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate(cluster | {"max_worker": 3}, SCHEMA)


def test_the_cluster_has_a_head_cpu_workers_and_gpu_workers_on_spot(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert set(types) == {"head", "cpu", "gpu"}
    assert cluster["head_node_type"] == "head"
    assert types["head"]["resources"]["CPU"] == 0
    assert types["gpu"]["resources"]["GPU"] == 1
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]


def test_the_cluster_grows_and_shrinks_with_the_work(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    for name in ("cpu", "gpu"):
        assert types[name]["max_workers"] > types[name]["min_workers"]
    assert sum(kind["max_workers"] for kind in types.values()) <= cluster["max_workers"]


def test_the_cluster_has_the_pinned_version_of_ray(cluster: dict[str, Any]) -> None:
    assert f"ray:{version('ray')}-py311" in cluster["docker"]["image"]


def test_the_dashboard_listens_on_localhost_and_clients_need_the_token(cluster: dict[str, Any]) -> None:
    start = cluster["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start
    for command in (start, cluster["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in command

"""`cluster.yaml` for Ray's cluster launcher, as far as it can be checked without AWS."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text()
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())


@pytest.fixture
def cluster() -> dict[str, Any]:
    return dict(yaml.safe_load(TEXT))


def test_rays_launcher_accepts_the_file(cluster: dict[str, Any]) -> None:
    jsonschema.validate(cluster, SCHEMA)


def test_rays_launcher_refuses_a_misspelled_key(cluster: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate(cluster | {"max_worker": 3}, SCHEMA)


def test_what_a_user_must_change_stands_between_the_two_marks_and_nowhere_else() -> None:
    marked = TEXT[TEXT.index("---- Lines to change") : TEXT.index("---- End of the lines to change")]
    rest = TEXT.replace(marked, "")
    for example in ("111122223333", "us-east-1", "BUCKET", "subnet-", "sg-"):
        assert example in marked
        assert example not in rest


def test_the_head_runs_no_work_and_is_on_demand(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_each_kind_of_worker_exists_on_spot_and_as_an_equal_on_demand_machine(
    cluster: dict[str, Any], kind: str
) -> None:
    spot, on_demand = (cluster["available_node_types"][name] for name in (f"{kind}-spot", kind))
    assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot["node_config"] == on_demand["node_config"]
    assert spot["resources"] == on_demand["resources"]
    assert spot["priority"] > on_demand["priority"]


def launched(cluster: dict[str, Any], needs: dict[str, float], workers: int, refused: str = "") -> Counter[str]:
    """Return what Ray's autoscaler would start for so many workers of a job, by kind of machine."""
    config = AutoscalingConfig(cluster, skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(needs)] * workers),
        recoverable_resource_availabilities={refused: 0.0},  # what the autoscaler notes of a launch that has failed
    )
    reply = ResourceDemandScheduler().schedule(request)
    return Counter({launch.instance_type: launch.count for launch in reply.to_launch if launch.instance_type != "head"})


def test_a_job_gets_spot_machines_of_the_kind_that_it_needs(cluster: dict[str, Any]) -> None:
    assert launched(cluster, {"GPU": 1}, 3) == {"gpu-spot": 3}
    assert launched(cluster, {"CPU": 8}, 4) == {"cpu-spot": 2}


def test_a_job_gets_on_demand_machines_where_the_spot_market_has_just_refused(cluster: dict[str, Any]) -> None:
    assert launched(cluster, {"GPU": 1}, 3, refused="gpu-spot") == {"gpu": 3}
    assert launched(cluster, {"CPU": 16}, 2, refused="cpu-spot") == {"cpu": 2}


def test_an_idle_cluster_has_no_workers_and_a_full_one_has_the_maximum(cluster: dict[str, Any]) -> None:
    assert launched(cluster, {}, 0) == {}
    workers = {name: kind for name, kind in cluster["available_node_types"].items() if name != "head"}
    assert all(kind["min_workers"] == 0 for kind in workers.values())
    full = launched(cluster, {"GPU": 1}, 100)
    assert sum(full.values()) == cluster["max_workers"]


def test_the_quotas_in_the_file_are_those_of_its_maxima(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    vcpus = {name: types[name]["max_workers"] * types[name]["resources"]["CPU"] for name in types}
    assert vcpus["cpu"] == vcpus["cpu-spot"] == 320
    assert vcpus["gpu"] == vcpus["gpu-spot"] == 160
    told = " ".join(TEXT.replace("\n#", " ").split())
    assert 'up to 320 of "Running On-Demand Standard instances"' in told
    assert '160 each of "Running On-Demand G and VT instances"' in told


def container_options(cluster: dict[str, Any]) -> list[str]:
    return [*cluster["docker"]["run_options"], *cluster["docker"].get("head_run_options", [])]


def test_one_image_serves_head_and_workers(cluster: dict[str, Any]) -> None:
    assert not {"head_image", "worker_image"} & cluster["docker"].keys()
    assert not any("docker" in kind for kind in cluster["available_node_types"].values())
    assert len({kind["node_config"]["ImageId"] for kind in cluster["available_node_types"].values()}) == 1


def test_every_command_in_the_container_is_in_token_mode(cluster: dict[str, Any]) -> None:
    assert "--env=RAY_AUTH_MODE=token" in container_options(cluster)


def test_the_setup_copies_the_token_so_that_only_its_user_reads_it(cluster: dict[str, Any], tmp_path: Path) -> None:
    assert cluster["file_mounts"] == {"/home/ray/secrets": "~/.asap"}
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/auth_token").write_text("a token")
    (tmp_path / "secrets/auth_token").chmod(0o644)
    for command in cluster["setup_commands"]:
        subprocess.run(["bash", "-c", command], env=os.environ | {"HOME": str(tmp_path)}, check=True)
    token = tmp_path / ".ray/auth_token"
    assert token.read_text() == "a token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700


@pytest.mark.skipif(not shutil.which("docker"), reason="needs Docker's command line, without its daemon")
def test_docker_accepts_the_options_beside_those_of_rays_launcher(cluster: dict[str, Any]) -> None:
    # Docker's client checks its options before it speaks to the daemon, which need not exist.
    launchers = ["--rm", "--name", "asap", "-d", "-it"]
    command = ["docker", "--host", "unix:///nowhere.sock", "run", *launchers]
    refused = subprocess.run([*command, "--restart=always", "image"], capture_output=True, text=True, check=False)
    assert "conflicting options" in refused.stderr  # why cluster.yaml says --rm=false
    options = [*container_options(cluster), "--net=host", "image", "bash"]
    accepted = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert "Cannot connect to the Docker daemon" in accepted.stderr


def test_ray_is_started_by_the_supervisor_on_head_and_workers(cluster: dict[str, Any]) -> None:
    assert "--entrypoint=supervise" in container_options(cluster)
    assert "--restart=unless-stopped" in container_options(cluster)
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert cluster[commands][0].startswith("supervise ray start --block ")
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in cluster["head_start_ray_commands"][0]


def test_ray_knows_each_option_of_its_start_commands(cluster: dict[str, Any]) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert set(re.findall(r"--[a-z-]+", cluster[commands][0])) <= known


def test_the_dashboard_which_takes_jobs_listens_on_the_heads_loopback_only(cluster: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][0]


def test_logs_and_spilled_objects_are_on_the_machines_disk_and_logs_are_shipped(cluster: dict[str, Any]) -> None:
    options = container_options(cluster)
    assert "--volume=/var/lib/ray:/tmp/ray" in options
    assert any(option.startswith("--env=ASAP_LOGS=s3://") for option in options)
    assert any("/var/lib/ray" in command for command in cluster["initialization_commands"])

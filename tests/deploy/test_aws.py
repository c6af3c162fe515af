"""cluster.yaml and the stacks of `deploy/` on an AWS account of moto, through Ray's own AWS provider."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.commands import _bootstrap_config

from tests.support.aws_account import BUCKET, PICTURES, REGION, ROOT, SSH_FROM, aws_account, policy_statements

NETWORK = (ROOT / "deploy/network.yaml").read_text()
WORKERS = ("cpu-spot", "cpu", "gpu-spot", "gpu")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Yield cluster.yaml as Ray's launcher has completed it for the account."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
            environment.delenv(name, raising=False)
        environment.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # the launcher writes its ssh key there
        with aws_account() as config:
            yield _bootstrap_config(config, no_config_cache=True)


def start(cluster: dict[str, Any], kind: str, count: int = 1) -> list[Any]:
    """Start machines of a kind as Ray does, and return them."""
    provider = AWSNodeProvider(cluster["provider"], cluster["cluster_name"])
    config = cluster["available_node_types"][kind]["node_config"] | {"ImageId": an_image()}
    role = "head" if kind == cluster["head_node_type"] else "worker"
    tags = {"ray-node-type": role, "ray-user-node-type": kind, "ray-node-name": f"ray-asap-{role}"}
    return list(provider.create_node(config, tags, count).values())


def an_image() -> str:
    """Return an image that moto knows; it does not look up `resolve:ssm:` as AWS does."""
    return str(boto3.client("ec2", REGION).describe_images(Owners=["amazon"])["Images"][0]["ImageId"])


def rules(group: str) -> list[dict[str, Any]]:
    found = boto3.client("ec2", REGION).describe_security_groups(GroupIds=[group])["SecurityGroups"][0]
    return list(found["IpPermissions"])


def test_the_launcher_takes_the_machines_networks_and_profiles_as_the_file_names_them(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert {types[kind]["node_config"]["IamInstanceProfile"]["Name"] for kind in WORKERS} == {"asap-worker"}
    assert types["head"]["node_config"]["IamInstanceProfile"] == {"Name": "asap-head"}
    assert len({types[kind]["node_config"]["SubnetIds"][0] for kind in (*WORKERS, "head")}) == 2
    assert types["gpu"]["resources"] == types["gpu-spot"]["resources"]
    assert types["gpu"]["resources"]["accelerator_type:L4"] == 1
    assert types["head"]["resources"] == {"CPU": 0}


def test_the_launcher_makes_no_group_of_its_own_which_would_be_open_to_everybody(cluster: dict[str, Any]) -> None:
    groups = boto3.client("ec2", REGION).describe_security_groups()["SecurityGroups"]
    assert not [group for group in groups if group["GroupName"].startswith("ray-autoscaler")]
    addresses = [
        address["CidrIp"] for group in groups for rule in group["IpPermissions"] for address in rule["IpRanges"]
    ]
    assert addresses == [SSH_FROM]


def test_only_ssh_from_one_address_reaches_the_head_and_nothing_from_outside_a_worker(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"]["head"]["node_config"]["SecurityGroupIds"][0]
    worker = cluster["available_node_types"]["gpu"]["node_config"]["SecurityGroupIds"][0]
    outside = [rule for rule in rules(head) if rule["IpRanges"]]
    assert [(rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) for rule in outside] == [("tcp", 22, 22)]
    assert not any(rule["IpRanges"] or rule["Ipv6Ranges"] for rule in rules(worker))
    for group in (head, worker):
        inside = {pair["GroupId"] for rule in rules(group) for pair in rule["UserIdGroupPairs"]}
        assert inside == {head, worker}


def test_all_machines_are_in_one_zone_and_workers_have_no_public_address(cluster: dict[str, Any]) -> None:
    machines = {kind: start(cluster, kind)[0] for kind in ("head", *WORKERS)}
    assert {machine.placement["AvailabilityZone"] for machine in machines.values()} == {f"{REGION}a"}
    assert [machines[kind].public_ip_address for kind in WORKERS] == [None] * len(WORKERS)


def test_the_head_has_a_public_address(cluster: dict[str, Any]) -> None:
    # moto gives none to machines in subnets of CloudFormation, so the template is read.
    subnets = re.findall(r"^  (\w+):\n    Type: AWS::EC2::Subnet\n((?:    .*\n)+)", NETWORK, re.MULTILINE)
    assert {name: "MapPublicIpOnLaunch: true" in body for name, body in subnets} == {
        "HeadSubnet": True,
        "WorkerSubnet": False,
    }


def test_machines_have_the_tags_by_which_ray_and_the_head_policy_know_them(cluster: dict[str, Any]) -> None:
    tags = {tag["Key"]: tag["Value"] for tag in start(cluster, "gpu")[0].tags}
    assert tags["ray-cluster-name"] == "asap"
    assert tags["ray-user-node-type"] == "gpu"
    assert tags["Name"] == "ray-asap-worker"


def test_spot_is_asked_for_where_the_kind_says_so(cluster: dict[str, Any]) -> None:
    spot = {kind: start(cluster, kind)[0].instance_lifecycle == "spot" for kind in WORKERS}
    assert spot == {"cpu-spot": True, "cpu": False, "gpu-spot": True, "gpu": False}


def test_the_request_has_a_large_encrypted_disk_and_the_newer_metadata_service(
    cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = recorded_calls(monkeypatch)
    start(cluster, "cpu", 3)
    asked = next(parameters for operation, parameters in requests if operation == "RunInstances")
    disk = asked["BlockDeviceMappings"][0]["Ebs"]
    assert (disk["VolumeSize"], disk["VolumeType"], disk["Encrypted"]) == (200, "gp3", True)
    assert disk["Throughput"] >= 500
    assert asked["MetadataOptions"] == {"HttpTokens": "required"}
    assert (asked["MinCount"], asked["MaxCount"]) == (1, 3)


def recorded_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Return a list to which each call of AWS is added from now on."""
    calls: list[tuple[str, dict[str, Any]]] = []
    plain = BaseClient._make_api_call

    def call(self: Any, operation: str, parameters: dict[str, Any]) -> Any:
        calls.append((operation, parameters))
        return plain(self, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", call)
    return calls


def allows(statements: list[dict[str, Any]], action: str, resource: str) -> bool:
    """Return True if a statement allows the action on the resource; its conditions are not looked at."""

    def each(value: str | list[str]) -> list[str]:
        return [value] if isinstance(value, str) else value

    return any(
        statement["Effect"] == "Allow"
        and any(fnmatch.fnmatchcase(action, pattern) for pattern in each(statement["Action"]))
        and any(fnmatch.fnmatchcase(resource, pattern) for pattern in each(statement["Resource"]))
        for statement in statements
    )


def test_the_head_may_make_every_call_by_which_ray_starts_lists_tags_and_ends_workers(
    cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded_calls(monkeypatch)
    provider = AWSNodeProvider(cluster["provider"], cluster["cluster_name"])
    machines = start(cluster, "gpu", 2)
    provider.non_terminated_nodes({"ray-node-type": "worker"})
    provider.set_node_tags(machines[0].id, {"ray-node-status": "up-to-date"})
    assert provider.is_running(machines[0].id)
    provider.terminate_nodes([machine.id for machine in machines])
    made = {operation for operation, _ in calls} - {"DescribeImages"}  # the test's own, see an_image
    assert {"RunInstances", "DescribeInstances", "CreateTags", "TerminateInstances"} <= made
    statements = policy_statements("asap-head")
    machine = f"arn:aws:ec2:{REGION}:123456789012:instance/{machines[0].id}"
    for operation in made:
        resource = "*" if operation.startswith("Describe") else machine
        assert allows(statements, f"ec2:{operation}", resource), operation


@pytest.mark.parametrize(
    "resource",
    ["instance", "key-pair", "network-interface", "security-group", "subnet", "volume", "spot-instances-request"],
)
def test_the_head_may_start_machines_with_all_that_they_are_made_of(cluster: dict[str, Any], resource: str) -> None:
    arn = f"arn:aws:ec2:{REGION}:123456789012:{resource}/x-1"
    assert allows(policy_statements("asap-head"), "ec2:RunInstances", arn)


def test_the_head_may_hand_on_the_role_of_workers_and_no_other(cluster: dict[str, Any]) -> None:
    statements = policy_statements("asap-head")
    assert allows(statements, "iam:PassRole", "arn:aws:iam::123456789012:role/asap-worker")
    assert not allows(statements, "iam:PassRole", "arn:aws:iam::123456789012:role/asap-head")
    passing = next(statement for statement in statements if "iam:PassRole" in statement["Action"])
    assert passing["Condition"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}


def test_the_head_may_end_only_machines_of_its_cluster(cluster: dict[str, Any]) -> None:
    ending = [each for each in policy_statements("asap-head") if "ec2:TerminateInstances" in each["Action"]]
    assert [each["Condition"] for each in ending] == [{"StringEquals": {"aws:ResourceTag/ray-cluster-name": "asap"}}]


def test_a_worker_may_start_no_machine_and_hand_on_no_role(cluster: dict[str, Any]) -> None:
    actions = json.dumps([statement["Action"] for statement in policy_statements("asap-worker")])
    assert "ec2:" not in actions
    assert "iam:" not in actions


@pytest.mark.parametrize("role", ["asap-head", "asap-worker"])
def test_no_policy_allows_every_action_or_every_bucket(cluster: dict[str, Any], role: str) -> None:
    statements = policy_statements(role)
    assert not [statement for statement in statements if "*" in json.dumps(statement["Action"])]
    assert allows(statements, "s3:PutObject", f"arn:aws:s3:::{BUCKET}/scans/a/job.json")
    assert not allows(statements, "s3:PutObject", f"arn:aws:s3:::{PICTURES}/1.jpg")
    assert not allows(statements, "s3:GetObject", "arn:aws:s3:::another/1.jpg")

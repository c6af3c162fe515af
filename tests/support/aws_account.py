"""An AWS account of moto with the two stacks of `deploy/`, and cluster.yaml filled in for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import yaml
from moto import mock_aws

ROOT = Path(__file__).parents[2]
REGION = "us-east-1"
SSH_FROM = "198.51.100.7/32"
BUCKET = "our-results"
PICTURES = "our-pictures"


@contextmanager
def aws_account() -> Iterator[dict[str, Any]]:
    """Make the account of a team that is ready for `ray up`, and yield its cluster.yaml."""
    with mock_aws():
        forget_clients()
        create_stack("asap-network", ROOT / "deploy/network.yaml", Zone=f"{REGION}a", SshFrom=SSH_FROM)
        create_stack("asap-roles", ROOT / "deploy/iam/roles.yaml", Bucket=BUCKET, PicturesBucket=PICTURES)
        yield filled_in(outputs("asap-network")["Lines"])
    forget_clients()


def forget_clients() -> None:
    """Clear what Ray's AWS provider keeps of other accounts."""
    from ray.autoscaler._private.aws import config, utils

    for cache in (utils.resource_cache, utils.client_cache, config._get_subnets_or_die):
        cache.cache_clear()


def create_stack(name: str, template: Path, **parameters: str) -> None:
    """Create a CloudFormation stack, as `aws cloudformation deploy` does."""
    boto3.client("cloudformation", REGION).create_stack(
        StackName=name,
        TemplateBody=template.read_text(),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )


def outputs(stack: str) -> dict[str, str]:
    """Return the outputs of a stack."""
    found = boto3.client("cloudformation", REGION).describe_stacks(StackName=stack)["Stacks"][0]["Outputs"]
    return {output["OutputKey"]: output["OutputValue"] for output in found}


def filled_in(lines: str) -> dict[str, Any]:
    """Return cluster.yaml with these of its lines to change replaced, as a person would paste them."""
    text = (ROOT / "cluster.yaml").read_text()
    for line in lines.splitlines():
        key = line.partition(":")[0]
        text, count = re.subn(rf"^  {key}: &.*$", f"  {line}", text, flags=re.MULTILINE)
        assert count == 1, f"cluster.yaml has no line {key} to change"
    return dict(yaml.safe_load(text))


def policy_statements(role: str) -> list[dict[str, Any]]:
    """Return the statements of all policies of a role."""
    iam = boto3.client("iam", REGION)
    statements = []
    for attached in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        policy = iam.get_policy(PolicyArn=attached["PolicyArn"])["Policy"]
        document = iam.get_policy_version(PolicyArn=policy["Arn"], VersionId=policy["DefaultVersionId"])
        document = document["PolicyVersion"]["Document"]
        statements += (json.loads(document) if isinstance(document, str) else document)["Statement"]
    return statements

"""The roles of `deploy/iam` are enough for a scan: it runs on an S3 that refuses what they do not allow."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from tests.conftest import S3_ENVIRONMENT
from tests.support.aws_account import BUCKET, PICTURES, REGION, ROOT, create_stack
from tests.support.waiting import HANG_S


def check_rights(endpoint: str, checked: bool) -> None:
    """Have the server check the rights of each request from now on, or of none."""
    count = b"0" if checked else b"inf"  # requests without a check from now on
    request = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", count, {"Content-Type": "text/plain"})
    urllib.request.urlopen(request).close()


@pytest.fixture
def worker(corpus: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Upload the corpus to an account with the roles; yield the environment of one of its workers."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for variable, value in (S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    try:
        name = f"asap{abs(hash(request.node.nodeid)):x}"  # all servers of a process share their accounts
        buckets = {"Bucket": BUCKET, "PicturesBucket": PICTURES}
        create_stack(name, ROOT / "deploy/iam/roles.yaml", ClusterName=name, **buckets)
        s3 = boto3.client("s3")
        for bucket in (BUCKET, PICTURES):
            s3.create_bucket(Bucket=bucket)
        for path in (path for path in corpus.rglob("*") if path.is_file()):
            s3.upload_file(str(path), PICTURES, path.relative_to(corpus).as_posix())
        arn = boto3.client("iam", REGION).get_role(RoleName=f"{name}-worker")["Role"]["Arn"]
        keys = boto3.client("sts", REGION).assume_role(RoleArn=arn, RoleSessionName="a-worker")["Credentials"]
        check_rights(endpoint, True)
        yield os.environ | {
            "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
            "AWS_SESSION_TOKEN": keys["SessionToken"],
        }
    finally:
        check_rights(endpoint, False)
        server.stop()


def client_of(worker: dict[str, str]) -> Any:
    return boto3.client(
        "s3",
        aws_access_key_id=worker["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=worker["AWS_SECRET_ACCESS_KEY"],
        aws_session_token=worker["AWS_SESSION_TOKEN"],
    )


def test_a_worker_reads_pictures_and_writes_them_nowhere_but_into_results(worker: dict[str, str]) -> None:
    client = client_of(worker)
    assert client.get_object(Bucket=PICTURES, Key="a.jsonl")["Body"].read()
    client.put_object(Bucket=BUCKET, Key="scans/a/job.json", Body=b"{}")
    client.delete_object(Bucket=BUCKET, Key="scans/a/job.json")
    with pytest.raises(ClientError, match="AccessDenied"):
        client.put_object(Bucket=PICTURES, Key="a.jsonl", Body=b"")
    with pytest.raises(ClientError, match="AccessDenied"):
        client.delete_object(Bucket=PICTURES, Key="a.jsonl")
    with pytest.raises(ClientError, match="AccessDenied"):
        client.list_buckets()


@pytest.mark.slow
def test_a_scan_needs_no_more_in_s3_than_the_role_of_a_worker_allows(
    worker: dict[str, str], model_folder: Path
) -> None:
    asap = [sys.executable, "-c", "from jobs.cli.app import main; main()"]
    scan = ["scan", f"s3://{PICTURES}/a.jsonl", "--out", f"s3://{BUCKET}/scans", "--job", "a"]
    command = [*asap, *scan, "--model", str(model_folder)]
    done = subprocess.run(command, env=worker, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(client_of(worker).get_object(Bucket=BUCKET, Key="scans/a/summary.json")["Body"].read())
    assert (summary["pairs"], summary["errors"]) == (4, 0)

"""Folders that are put into a bucket."""

from pathlib import Path

import boto3


def upload_folder(folder: Path, bucket: str, prefix: str) -> str:
    """Upload every file of a folder below a prefix, and return its address."""
    client = boto3.client("s3")
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            client.upload_file(str(file), bucket, f"{prefix}/{file.relative_to(folder).as_posix()}")
    return f"s3://{bucket}/{prefix}"

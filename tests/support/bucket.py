"""Run a command beside a local S3 server whose bucket contains a folder: `bucket.py FOLDER BUCKET COMMAND …`.

The command finds the server as every AWS tool does: through AWS_ENDPOINT_URL and credentials in the environment.
"""

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer


def main(folder: Path, bucket: str, command: list[str]) -> int:
    """Start the server, upload the folder, run the command, and return its exit code."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # without a line for each object
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket=bucket)
        files = [path for path in folder.rglob("*") if path.is_file()]
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(lambda path: client.upload_file(str(path), bucket, path.relative_to(folder).as_posix()), files)
            )
        sys.stdout.write(f"s3://{bucket} holds {len(files)} objects\n")
        sys.stdout.flush()
        return subprocess.run(command, check=False).returncode
    finally:
        server.stop()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))

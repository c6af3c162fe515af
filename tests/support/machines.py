"""A cluster of machines on this machine: each has its own network, processes, /tmp, /dev/shm, name and token file.

A machine is a process with Linux namespaces of its own. A switch, which is a network namespace too, connects the
machines, and an S3 server listens there with the buckets of the fixture `s3`. Nothing of it is seen from outside, and
everything ends with the processes, also when the tests are killed. Ray runs as on AWS: by the commands of cluster.yaml,
under `deploy/supervise`.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from tests.support.waiting import HANG_S, wait_until

ROOT = Path(__file__).parents[2]
NEEDED = ("unshare", "nsenter", "ip", "mount", "pkill")
NETWORK = "10.77.0."
SWITCH = f"{NETWORK}1"
HOME = "/tmp/home"  # noqa: S108 - on a disk that only the machine sees
_LOG = f"{HOME}/supervise.log"
S3_PORT = 9000
REDIS_PORT = 6379
REDIS_NAMESPACE = "tests"
_NAMESPACES = ("--net", "--mount", "--uts", "--pid")
_CLONE_NEWNET = 0x40000000
_DISK_AND_NAME = """
set -e
name=$1 disk=$2 tree=$3 addresses=$4
hostname "$name"
mount -t tmpfs -o mode=1777 tmpfs "$disk"
case "$tree" in /tmp/*) mkdir -p "$disk/${tree#/tmp/}"; mount --bind "$tree" "$disk/${tree#/tmp/}" ;; esac
mount --move "$disk" /tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
printf '%s' "$addresses" > /tmp/hosts
mount --bind /tmp/hosts /etc/hosts
mount --bind /dev/null /etc/resolv.conf
umask 077
mkdir -p /tmp/home
ip link set lo up
echo ready
cat > /dev/null
exit
"""
"""The first process of a machine. It waits for processes without a parent, and ends when its standard input does."""
_SWITCH = "ip link set lo up; ip link add name switch0 type bridge; ip address add {0}/24 dev switch0; "
_ALIVE = """
import sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=30).values()
print(*(node.node_manager_address for node in nodes if node.state == 0))
"""
"""Prints the addresses of the machines that the head counts as alive. Ray's own commands take longer."""


def can_make_machines() -> bool:
    """Return True if this process may make the namespaces of a machine."""
    if any(shutil.which(program) is None for program in NEEDED):
        return False
    command = ["unshare", *_NAMESPACES, "--fork", "sh", "-c", "ip link add name switch0 type bridge"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Machine:
    """A machine with Ray, or one that has been lost."""

    def __init__(self, cluster: Machines, name: str, number: int, command: Sequence[str]) -> None:
        self.name, self.address = name, f"{NETWORK}{number}"
        self._cluster, self._number, self._command = cluster, number, command
        self._boot()

    def run(self, words: Sequence[object], *, check: bool = True, **environment: str) -> str:
        """Run a command to its end, and return what it wrote to standard output."""
        process = self.start(words, stderr=subprocess.PIPE, **environment)
        try:
            output, errors = process.communicate(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            self.kill()  # the command is a child of the machine, not of this process
            raise
        if check:
            assert process.returncode == 0, f"{words} on {self.name}: {process.returncode}\n{output}\n{errors}"
        return str(output)

    def start(
        self, words: Sequence[object], stderr: int = subprocess.STDOUT, **environment: str
    ) -> subprocess.Popen[str]:
        """Start a command, whose output is to be read from a pipe. It ends with the machine at the latest."""
        return subprocess.Popen(
            [*self._enter, *map(str, words)], env=self._cluster.environment | environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip

    def write(self, path: str, content: bytes) -> None:
        """Write a file on the disk of the machine."""
        command = [*self._enter, "install", "-D", "--mode=600", "/dev/stdin", path]
        subprocess.run(command, input=content, env=self._cluster.environment, check=True)

    def kill(self) -> None:
        """Kill all processes of the machine, whose network still tells the others that their connections are closed."""
        if self._first.poll() is None:  # else its id may be that of another process
            os.kill(self._init, signal.SIGKILL)  # it ends after all the others
            self._first.wait()
        self._unplug()  # otherwise the system does it some time later

    def cut_off(self) -> None:
        """Take the machine away without a sign to the others, as when its power or its network fails."""
        self._unplug()
        self.kill()

    def kill_ray(self) -> None:
        """Kill the processes of Ray's core on the machine. Its supervisor goes on."""
        self.run(["pkill", "-KILL", "-x", "gcs_server|raylet"])

    def restart(self) -> None:
        """Take the machine away, and start one with the same name and address, with an empty disk and with Ray."""
        self.kill()
        self._boot()

    def log(self) -> str:
        """Return what the supervisor and Ray have printed."""
        return self.run(["cat", _LOG])

    def _boot(self) -> None:
        addresses = "".join(f"{NETWORK}{number} {name}\n" for name, number in self._cluster.numbers.items())
        disk = self._cluster.folder / f"{self.name}-{secrets.token_hex(4)}"
        disk.mkdir()
        setup = [self.name, str(disk), str(ROOT), f"127.0.0.1 localhost\n{addresses}"]
        self._first = subprocess.Popen(
            ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "--kill-child", "bash", "-c", _DISK_AND_NAME, "bash",
             *setup], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._first.stdout is not None
        assert self._first.stdout.readline() == "ready\n", f"{self.name} did not start"
        self._init = int(Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text())
        self._enter = ["nsenter", f"--target={self._init}", *_NAMESPACES, f"--wdns={HOME}", "--"]
        self._plug_in()
        self.write(f"{HOME}/.ray/auth_token", self._cluster.token.encode())
        if self._cluster.redis_password:
            self.write(f"{HOME}/.ray/redis_password", f"{self._cluster.redis_password}\n".encode())
        supervise = f"exec supervise bash > {_LOG} 2>&1"
        self.run(["bash", "-c", f"({supervise}) & disown"])
        self.run(self._command, RAY_HEAD_IP=self._cluster.head_address)

    def _unplug(self) -> None:
        command = self._cluster.on_switch("ip", "link", "delete", f"port{self._number}")
        subprocess.run(command, capture_output=True, check=False)

    def _plug_in(self) -> None:
        """Connect the machine to the switch. Its hardware address depends on the network address alone."""
        port, hardware = f"port{self._number}", f"02:00:00:00:00:{self._number:02x}"
        for words in (
            f"ip link add name {port} type veth peer name eth0 address {hardware} netns {self._init}",
            f"ip link set {port} master switch0 up",
        ):
            subprocess.run(self._cluster.on_switch(*words.split()), check=True)
        # Without a way to other networks, Ray would take the loopback address for that of the machine.
        for words in (
            f"ip address add {self.address}/24 dev eth0", "ip link set eth0 up", f"ip route add default via {SWITCH}",
        ):  # fmt: skip
            self.run(words.split())


class Machines:
    """A cluster: a head without CPUs for work, and workers."""

    def __init__(self, folder: Path, environment: dict[str, str], redis: bool) -> None:
        self.folder, self.environment = folder, environment
        self.token = secrets.token_hex(32)
        self.numbers = {"head": 2} | {f"worker-{number}": 3 + number for number in range(20)}
        self.head_address = f"{NETWORK}{self.numbers['head']}"
        self.switch = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", f"{_SWITCH.format(SWITCH)} ip link set switch0 up; echo ready; cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.switch.stdout is not None
        assert self.switch.stdout.readline() == "ready\n", "the switch did not start"
        self._head_command = _start_command("head", cpus=0, address=self.head_address)
        self.redis_password = secrets.token_hex(8) if redis else None
        of_redis = {"RAY_REDIS_ADDRESS": f"{SWITCH}:{REDIS_PORT}", "RAY_external_storage_namespace": REDIS_NAMESPACE}
        self._redis = of_redis if redis else {}
        self.workers: list[Machine] = []

    def on_switch(self, *words: str) -> list[str]:
        """Return a command that runs in the network of the switch."""
        return ["nsenter", f"--target={self.switch.pid}", "--net", "--", *words]

    def start(self, workers: int, cpus: int) -> None:
        """Start the head and the workers, and wait until the head knows them."""
        self.head = Machine(self, "head", self.numbers["head"], self._with_redis(self._head_command))
        for _ in range(workers):
            self.join(cpus)
        self.wait_for(["head", *(worker.name for worker in self.workers)])

    def worker(self, number: int) -> Machine:
        """Return a worker, in the order in which they joined."""
        return self.workers[number]

    def join(self, cpus: int = 1) -> Machine:
        """Start a further worker, which joins the cluster in its own time, and return it."""
        name = f"worker-{len(self.workers)}"
        command = _start_command("worker", cpus=cpus, address=f"{NETWORK}{self.numbers[name]}")
        self.workers.append(Machine(self, name, self.numbers[name], command))
        return self.workers[-1]

    def alive(self) -> list[str]:
        """Return the names of the machines that the head counts as alive; none while it does not answer."""
        command = [sys.executable, "-c", _ALIVE, f"{self.head_address}:6379"]
        found = self.head.run(command, check=False).split()
        names = {f"{NETWORK}{number}": name for name, number in self.numbers.items()}
        return sorted(names[address] for address in found)

    def wait_for(self, names: Sequence[str]) -> None:
        """Wait until these machines are alive, and no others."""
        wait_until(lambda: self.alive() == sorted(names), every_s=1)

    def asap(self, *words: object) -> str:
        """Run a command of asap on the head to its end, and return what it printed."""
        return self.head.run(["asap", *words])

    def redis_keys(self) -> list[str]:
        """Return the keys that Redis holds."""
        words = ["redis-cli", "-h", SWITCH, "-p", str(REDIS_PORT), "--no-auth-warning", "keys", "*"]
        environment = os.environ | {"REDISCLI_AUTH": self.redis_password or ""}
        done = subprocess.run(self.on_switch(*words), env=environment, capture_output=True, text=True, check=True)
        return done.stdout.split()

    def end(self) -> None:
        """End all machines and the switch, and with them what runs there."""
        for machine in [*self.workers, *([self.head] if hasattr(self, "head") else [])]:
            machine.kill()
        self.switch.kill()
        self.switch.wait()

    def _with_redis(self, command: Sequence[str]) -> list[str]:
        return ["env", *(f"{name}={value}" for name, value in self._redis.items()), *command]


@contextmanager
def cluster(workers: int = 2, *, cpus: int = 1, redis: bool = False) -> Iterator[Machines]:
    """Run a cluster for the duration of the block. The fixture `s3` must be in use.

    Args:
        workers: Number of workers at the start.
        cpus: CPUs of each.
        redis: True to keep the state of the head in a Redis, which listens on the switch.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="machines", dir="/tmp")))
        machines = Machines(folder, _environment(), redis)
        stack.callback(machines.end)
        stack.enter_context(_s3_on(machines.switch.pid))
        if redis:
            stack.enter_context(_redis_on(machines))
        machines.start(workers, cpus)
        yield machines


def _environment() -> dict[str, str]:
    """Return the environment of all commands on the machines. It has nothing of the machine that runs the tests."""
    return {
        "PATH": f"{Path(sys.executable).parent}:{ROOT / 'deploy'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": HOME,
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "SUPERVISE_PAUSE_S": "1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://{SWITCH}:{S3_PORT}",
    }


def _start_command(kind: str, *, cpus: int, address: str) -> list[str]:
    """Return the command by which cluster.yaml starts Ray on a head or a worker, without an autoscaler."""
    command = yaml.safe_load((ROOT / "cluster.yaml").read_text())[f"{kind}_start_ray_commands"][0]
    # A machine of a cloud has these facts from its hardware and its network. Here all share the memory.
    more = f"--num-cpus={cpus} --node-ip-address={address} --object-store-memory={150 * 2**20}"
    return ["bash", "-c", f"{re.sub(' --autoscaling-config=[^ ]+', '', command)} {more}"]


@contextmanager
def _s3_on(process: int) -> Iterator[None]:
    """Run an S3 server in the network of a process, with the buckets of the server of the fixture `s3`."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import BaseWSGIServer, make_server

    servers: list[BaseWSGIServer] = []
    is_ready = threading.Event()

    def serve() -> None:
        # The network of a thread decides where its sockets are; the other threads stay where they were.
        library = ctypes.CDLL(None, use_errno=True)
        network = os.open(f"/proc/{process}/ns/net", os.O_RDONLY)
        try:
            if library.setns(network, _CLONE_NEWNET) == 0:
                application = DomainDispatcherApplication(create_backend_app)
                servers.append(make_server(SWITCH, S3_PORT, application, threaded=True))
        finally:
            os.close(network)
            is_ready.set()
        for server in servers:
            server.serve_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    is_ready.wait(HANG_S)
    assert servers, "the S3 server of the machines did not start"
    try:
        yield
    finally:
        servers[0].shutdown()
        thread.join(HANG_S)


@contextmanager
def _redis_on(machines: Machines) -> Iterator[None]:
    """Run Redis on the switch, with a password, and with the options that make it keep each change on its disk."""
    assert machines.redis_password is not None
    command = machines.on_switch(
        "redis-server", "--bind", SWITCH, "--port", str(REDIS_PORT), "--appendonly", "yes", "--dir",
        str(machines.folder), "--requirepass", machines.redis_password,
    )  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(HANG_S)

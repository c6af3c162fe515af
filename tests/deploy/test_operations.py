"""The pages docs/cluster.md and docs/operations.md say what cluster.yaml, the stacks and the code do."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private import ray_constants
from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
from ray.dashboard.consts import DASHBOARD_METRIC_PORT

from serve.settings import ServeSettings

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs/operations.md").read_text()
PAGE = (ROOT / "docs/cluster.md").read_text()
CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())


def documented_ports() -> dict[str, str]:
    """Return the ports of the table "Who listens where", each with its machines."""
    table = OPERATIONS[OPERATIONS.index("## Who listens where") :]
    return dict(re.findall(r"^\| ([\d-]+) \| ([^|]+?) \|", table, re.MULTILINE))


def ports_of(command: str) -> dict[str, str]:
    """Return the ports of a `ray start`, by option."""
    return dict(re.findall(r"--([a-z-]*port)=(\d+)", command))


def test_the_table_has_every_port_that_cluster_yaml_fixes_and_that_ray_and_the_api_open_by_default() -> None:
    head = ports_of(CLUSTER["head_start_ray_commands"][0])
    worker = ports_of(CLUSTER["worker_start_ray_commands"][0])
    ranges = {head.pop("min-worker-port") + "-" + head.pop("max-worker-port")}
    assert ranges == {worker.pop("min-worker-port") + "-" + worker.pop("max-worker-port")}
    api = str(ServeSettings.model_fields["port"].default)
    both = set(worker.values()) | ranges | {"22", api}
    head_only = set(head.values()) - both | {str(AUTOSCALER_METRIC_PORT), str(DASHBOARD_METRIC_PORT)}
    documented = documented_ports()
    assert {port for port, on in documented.items() if on == "head, workers"} == both
    assert {port for port, on in documented.items() if on.split(",")[0] == "head" and "workers" not in on} == head_only


def test_head_and_workers_fix_each_port_that_ray_would_choose_anew() -> None:
    from ray.scripts.scripts import start

    options = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    ports = {option for option in options if option.endswith("-port")}
    for command, unused in (
        (CLUSTER["head_start_ray_commands"][0], set()),
        (CLUSTER["worker_start_ray_commands"][0], {"dashboard-port", "ray-client-server-port"}),
    ):
        assert ports - unused <= ports_of(command).keys()


def test_the_dashboard_is_on_rays_default_port_to_which_commands_on_the_laptop_go() -> None:
    assert ports_of(CLUSTER["head_start_ray_commands"][0])["dashboard-port"] == str(
        ray_constants.DEFAULT_DASHBOARD_PORT
    )
    assert f"--address http://127.0.0.1:{ray_constants.DEFAULT_DASHBOARD_PORT}" in PAGE
    assert documented_ports()["8265"] == "head, 127.0.0.1 only"


def test_no_port_is_used_twice_on_a_machine() -> None:
    for command in (CLUSTER["head_start_ray_commands"][0], CLUSTER["worker_start_ray_commands"][0]):
        ports = list(ports_of(command).values())
        assert len(set(ports)) == len(ports)
        first, last = int(ports_of(command)["min-worker-port"]), int(ports_of(command)["max-worker-port"])
        assert not [port for port in ports if first < int(port) < last]


@pytest.mark.parametrize("template", ["network.yaml", "iam/roles.yaml"])
def test_the_page_gives_each_parameter_that_a_stack_needs(template: str) -> None:
    text = (ROOT / "deploy" / template).read_text()
    parameters = text[text.index("Parameters:") : text.index("Resources:")]
    needed = {
        name
        for name, body in re.findall(r"^  (\w+):\n((?:    .*\n)+)", parameters, re.MULTILINE)
        if "Default" not in body
    }
    command = next(each for each in commands() if f"deploy/{template}" in each)
    assert {word.partition("=")[0] for word in shlex.split(command) if re.match(r"[A-Z]\w+=", word)} == needed


@pytest.mark.parametrize(
    ("quoted", "module"),
    [
        ("no Ray dashboard answers at http://127.0.0.1:8265", "jobs/submit/job_server.py"),
        ("waiting up to 15 min for machines to hold", "jobs/cluster.py"),
    ],
)
def test_the_page_quotes_messages_as_asap_prints_them(quoted: str, module: str) -> None:
    assert f'"{quoted}' in OPERATIONS
    message = re.sub(r"http\S+|\d+ min", r"\\{[^}]*\\}", quoted)
    assert re.search(message, (ROOT / module).read_text())


def commands() -> list[str]:
    """Return the commands of the page, with continued lines joined."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", PAGE, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def test_the_page_submits_to_the_address_that_the_dashboard_is_forwarded_to() -> None:
    submits = [each for each in commands() if each.startswith("asap submit ") and "…" not in each]
    assert submits
    for command in submits:
        assert shlex.split(command)[-2:] == ["--address", "http://127.0.0.1:8265"]


def test_the_page_puts_the_token_and_the_keys_where_cluster_yaml_takes_them_from() -> None:
    assert CLUSTER["file_mounts"]["/home/ray/secrets"] == "~/.asap"
    assert "> ~/.asap/auth_token" in PAGE
    assert "--keys /home/ray/.ray/keys" in PAGE


@pytest.mark.parametrize("page", ["cluster.md", "operations.md"])
def test_links_lead_to_sections_that_exist(page: str) -> None:
    for file, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", (ROOT / "docs" / page).read_text()):
        target = (ROOT / "docs" / (file or page)).resolve()
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in anchors, f"{file}#{anchor}"

import os
import subprocess
import sys

import pytest
import yaml
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

from asap.errors import ConfigError
from asap.packages import SETUP_HOOK
from serve.api.callers.keys import new_key
from serve.deploy import CONTROLLER, deploy_yaml, missing_keys_note
from serve.proxy import CALLBACK
from serve.settings import ServeSettings

CHANGED = ServeSettings(
    model="s3://models/mine", host="0.0.0.0", port=8100, keys_file="/etc/asap/keys", uri_prefixes=("s3://pictures/",),
    min_replicas=2, max_replicas=8, upscale_delay_s=3, downscale_delay_s=60, detector_gpus=1, batch_size=32,
)  # fmt: skip


@pytest.mark.parametrize("settings", [ServeSettings(), CHANGED], ids=["defaults", "changed"])
def test_ray_accepts_the_file_and_it_contains_every_setting(settings: ServeSettings) -> None:
    from ray.serve.schema import ServeDeploySchema

    deployed = ServeDeploySchema.model_validate(yaml.safe_load(deploy_yaml(settings)))
    assert (deployed.http_options.host, deployed.http_options.port) == (settings.host, settings.port)
    assert deployed.http_options.request_timeout_s > settings.deadline_s
    (application,) = deployed.applications
    assert CALLBACK.items() <= deployed.controller_options.runtime_env["env_vars"].items()
    for environment in (deployed.controller_options.runtime_env, application.runtime_env):
        assert environment["env_vars"][WORKER_PROCESS_SETUP_HOOK_ENV_VAR] == SETUP_HOOK
    assert (application.import_path, application.route_prefix) == ("serve.app:build", "/")
    assert set(application.args) == set(ServeSettings.model_fields)
    assert ServeSettings(**application.args) == settings


def test_ray_builds_the_application_that_the_file_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve._private.utils import import_attr

    monkeypatch.setenv("ASAP_KEYS", new_key("desk")[1])
    settings = CHANGED.model_copy(update={"keys_file": None, "model": "demo"})
    (application,) = yaml.safe_load(deploy_yaml(settings))["applications"]
    built = call_user_app_builder_with_args_if_necessary(import_attr(application["import_path"]), application["args"])
    detector = built._bound_deployment.init_args[2]._bound_deployment
    scaling = detector._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.upscale_delay_s) == (2, 8, 3)
    assert detector.ray_actor_options["num_gpus"] == 1


def test_the_file_contains_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    key, line = new_key("desk")
    monkeypatch.setenv("ASAP_KEYS", line)
    content = deploy_yaml(ServeSettings(host="0.0.0.0"))
    assert key not in content
    assert line.partition(":")[2] not in content


@pytest.mark.parametrize("change", [{"model": "my-model"}, {"keys_file": "keys.txt"}, {"audit_file": "audit.jsonl"}])
def test_a_relative_path_is_refused(change: dict[str, str]) -> None:
    ((name, path),) = change.items()
    with pytest.raises(ConfigError, match=f"{name} '{path}' is a relative path. Give a whole path"):
        deploy_yaml(ServeSettings(**change))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"keys_file": "s3://keys/all"}, "an address"), ({"audit_file": "s3://logs/a"}, "an address"),
        ({"keys_file": "demo"}, "a relative path"), ({"audit_file": "demo"}, "a relative path"),
    ],
)  # fmt: skip
def test_only_a_model_is_named_by_an_address_or_as_demo(change: dict[str, str], kind: str) -> None:
    ((name, path),) = change.items()
    with pytest.raises(ConfigError, match=f"{name} '{path}' is {kind}. Give a whole path"):
        deploy_yaml(ServeSettings(**change))


def test_settings_that_need_keys_and_name_none_have_a_note() -> None:
    note = missing_keys_note(ServeSettings(host="0.0.0.0"))
    assert note is not None
    assert note.startswith("the file names no keys, and host '0.0.0.0' needs them")
    assert missing_keys_note(ServeSettings()) is missing_keys_note(CHANGED) is None


def test_ray_reads_how_long_a_proxy_may_take_to_get_ready() -> None:
    code = "from ray.serve._private.constants import PROXY_READY_CHECK_TIMEOUT_S as s; print(s)"
    environment = os.environ | CONTROLLER["runtime_env"]["env_vars"]
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert float(result.stdout) == 60

"""The application as a file for a cluster: what `serve deploy` takes, with every setting in it and no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from asap.errors import ConfigError
from asap.packages import SETUP_HOOK
from serve.api.keys import ENVIRONMENT
from serve.proxy import CALLBACK
from serve.settings import ServeSettings

APP = "asap"
"""The application's name on a cluster."""
LOGGING = {"log_level": "WARNING", "enable_access_log": False}
"""Of Ray's own lines only what is wrong, and none for each request: the API writes one."""
_HOOK = {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": SETUP_HOOK}
"""What Ray makes of a job's `worker_process_setup_hook`. `serve deploy` has no job of ours to give it to."""
CONTROLLER = {"runtime_env": {"env_vars": CALLBACK | _HOOK}}
"""Of Ray's controller, whose environment the proxies get that it starts."""
_ANSWER_WITHIN_S = 5
"""After the deadline of a request, which the API keeps itself once it has it."""
_HEAD = f"""\
# Written by `asap serve build`. On a machine of the cluster:  serve deploy FILE
# The model and the keys are read there. Keys are not in here: keys_file names a file that the machines have, and
# where it is null, {ENVIRONMENT} is in the environment of their `ray start`.
"""


def http_options(settings: ServeSettings) -> dict[str, Any]:
    """Of Ray's proxy, in which requests wait while no process of the API lives: it answers them 408 in the end."""
    return {
        "host": settings.host,
        "port": settings.port,
        "request_timeout_s": settings.deadline_s + _ANSWER_WITHIN_S,
    }


def deploy_config(settings: ServeSettings) -> dict[str, Any]:
    """Ray's `ServeDeploySchema` for one application. Raises `ConfigError` for a path that only this folder knows."""
    local = {"model": settings.model, "keys_file": settings.keys_file}
    for name, path in local.items():
        if path and not (path == "demo" or path.startswith("s3://") or Path(path).is_absolute()):
            raise ConfigError(
                f"{name} {path!r} lies in the folder where this runs; give a whole path, which all machines have"
            )
    return {
        "proxy_location": "EveryNode",
        "http_options": http_options(settings),
        "controller_options": CONTROLLER,
        "logging_config": LOGGING,
        "applications": [
            {
                "name": APP,
                "route_prefix": "/",
                "import_path": "serve.app:build",
                "runtime_env": {"env_vars": _HOOK},
                "args": settings.model_dump(mode="json"),
            }
        ],
    }


def deploy_yaml(settings: ServeSettings) -> str:
    """The file. Raises as `deploy_config` does."""
    return _HEAD + yaml.safe_dump(deploy_config(settings), sort_keys=False)

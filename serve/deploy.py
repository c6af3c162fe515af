"""The file for `serve deploy` on a cluster. It contains every setting and no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from asap.errors import ConfigError
from asap.packages import SETUP_HOOK
from serve.api.callers.keys import ENVIRONMENT
from serve.proxy import CALLBACK
from serve.settings import LOGGING, ServeSettings

APP = "asap"
"""The application's name on a cluster."""
_HOOK = {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": SETUP_HOOK}
"""The variable that Ray sets for the `worker_process_setup_hook` of a job. `serve deploy` has no job to set it on."""
_PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
"""Seconds after which Ray kills a proxy that is not ready. Its default of 5 s fails on a busy machine."""
CONTROLLER = {"runtime_env": {"env_vars": CALLBACK | _HOOK | _PATIENCE}}
"""Options of Ray's controller. The proxies that it starts inherit its environment."""
_AFTER_DEADLINE_S = 5
"""Seconds that Ray's proxy waits beyond a request's deadline, which the API itself enforces."""
_HEAD = f"""\
# Written by `asap serve build`. On a machine of the cluster:  serve deploy FILE
# The model and the keys are read on the cluster. This file contains no keys: keys_file names a file that the machines
# have. If it is null, the keys are read from {ENVIRONMENT} in the environment of their `ray start`.
"""


def http_options(settings: ServeSettings) -> dict[str, Any]:
    """Return the options of Ray's proxy. Requests wait in it while no process of the API runs, and finally get 408."""
    return {
        "host": settings.host,
        "port": settings.port,
        "request_timeout_s": settings.deadline_s + _AFTER_DEADLINE_S,
    }


def deploy_config(settings: ServeSettings) -> dict[str, Any]:
    """Return Ray's `ServeDeploySchema` for one application. Raises `ConfigError` for a relative path."""
    local = {"model": settings.model, "keys_file": settings.keys_file, "audit_file": settings.audit_file}
    for name, path in local.items():
        if path and not (path == "demo" or path.startswith("s3://") or Path(path).is_absolute()):
            raise ConfigError(f"{name} {path!r} is a relative path. Give a whole path, which exists on every machine.")
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
    """Return the content of the file. Raises as `deploy_config` does."""
    return _HEAD + yaml.safe_dump(deploy_config(settings), sort_keys=False)

"""The file for `serve deploy` on a cluster. It contains every setting and no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from asap.errors import ConfigError
from asap.packages import SETUP_HOOK
from serve.api.callers.keys import ENVIRONMENT
from serve.proxy import CALLBACK
from serve.settings import LOGGING, ServeSettings, is_loopback

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
# The model and the keys are read on the cluster. This file contains no keys: keys_file names a file that the head and
# the machines of the API have. If it is null, the head reads the keys once, from {ENVIRONMENT} in the environment of
# its `ray start`.
"""


def http_options(settings: ServeSettings) -> dict[str, Any]:
    """Return the options of Ray's proxy. Requests wait in it while no process of the API runs, and finally get 408."""
    return {
        "host": settings.host,
        "port": settings.port,
        "request_timeout_s": settings.deadline_s + _AFTER_DEADLINE_S,
    }


def deploy_config(settings: ServeSettings) -> dict[str, Any]:
    """Return Ray's `ServeDeploySchema` for one application. Raises `ConfigError` for a path that is not absolute."""
    local = {"model": settings.model, "keys_file": settings.keys_file, "audit_file": settings.audit_file}
    for name, path in local.items():
        is_fetched = name == "model" and (settings.model == "demo" or settings.model.startswith("s3://"))
        if path and not is_fetched and not Path(path).is_absolute():
            kind = "an address" if "://" in path else "a relative path"
            raise ConfigError(f"{name} {path!r} is {kind}. Give a whole path, which exists on every machine.")
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


def missing_keys_note(settings: ServeSettings) -> str | None:
    """Return a sentence for settings that need keys and name no file of them; None for any others."""
    if settings.keys_file is not None or is_loopback(settings.host):
        return None
    return (
        f"the file names no keys, and host {settings.host!r} needs them: the server starts only if {ENVIRONMENT} is "
        "set in the environment of the head's `ray start`. Set it there, or give --keys FILE."
    )


def deploy_yaml(settings: ServeSettings) -> str:
    """Return the content of the file. Raises as `deploy_config` does."""
    return _HEAD + yaml.safe_dump(deploy_config(settings), sort_keys=False)

"""`asap serve` and `asap serve build`: run a server on this machine, or write the file that deploys it on a cluster."""

from __future__ import annotations

import errno
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asap.errors import CheckpointError, ConfigError
from jobs.cli.options import MODEL_HELP, Change, changes_of, check_device, settings_of

if TYPE_CHECKING:
    from serve.settings import ServeSettings

serving = typer.Typer(invoke_without_command=True)
_Port = Annotated[int, typer.Option(help="Port to listen on.")]
_Keys = Annotated[str | None, typer.Option(help="File of API keys. Default: the variable ASAP_KEYS, if it is set.")]
_Scopes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SCOPE",
        help="With --new-key: what it may be used for: detect (default), metrics, jobs or all-jobs. Can be repeated.",
    ),
]
_WITHOUT_KEYS = (
    "The server has no keys: it answers this machine only. It cannot recognize a proxy on this machine that adds no "
    "header. Make a key before you put a proxy in front: asap serve --new-key NAME."
)


@serving.callback()
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "demo",
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any address but loopback requires keys.")
    ] = "127.0.0.1",
    port: _Port = 8000,
    keys: _Keys = None,
    new_key: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Make a key, print it with its line for the file of keys, and exit."),
    ] = None,
    scope: _Scopes = None,
    expires: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="With --new-key: date or time from which it is refused, as 2027-03-01."),
    ] = None,
    change: Change = None,
) -> None:
    """Detect manipulation online: run an API and a web page until stopped."""
    from serve.settings import ServeSettings

    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    if new_key is not None:
        from serve.api.callers.keys import new_key as make

        key, line = make(new_key, tuple(scope or ("detect",)), expires)
        typer.echo(f"key, for its holder:  {key}\nline, for the file:   {line}")
        return
    if scope or expires:
        raise ConfigError("--scope and --expires describe a new key. Give --new-key NAME with them.")
    # Check the command before the slow imports, so that a typing error is reported at once.
    options = {"model": model, "host": host, "port": port, "keys_file": keys}
    settings = settings_of(ServeSettings, **(options | changes_of(change or [])))
    from serve.api.audit import check_audit_file
    from serve.api.callers.keys import load_keys

    check_device(settings.device)
    has_keys = bool(load_keys(settings))
    if settings.audit_file is not None:
        check_audit_file(settings.audit_file)
    _check_model(settings.model)
    _check_port(settings.host, settings.port)
    from jobs.cli.ray_log import ray_output_logged
    from jobs.cli.replica_log import print_json_lines_alone
    from jobs.cluster import ray_running
    from serve.app import build
    from serve.run import run

    application = build(settings)
    begin = time.monotonic()

    def announce(url: str) -> None:
        typer.echo(f"serving {model} at {url} (API reference: {url}docs)")
        if not has_keys:
            typer.echo(_WITHOUT_KEYS)

    def announce_stop() -> None:
        deadline = f"within {settings.drain_s:g} s"
        typer.echo(f"stopping: accepted requests are answered {deadline}. Send the signal again to stop immediately.")

    with ray_output_logged() as stderr:

        def show_step(step: str) -> None:
            typer.echo(f"{time.monotonic() - begin:6.1f} s  {step}", stderr)

        show_step("starting Ray")
        # Jobs are submitted through the dashboard. It listens on loopback, on a free port.
        dashboard: dict[str, Any] = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
        with ray_running(log_to_driver=True, **(dashboard if settings.jobs else {})):
            _check_room(settings)
            print_json_lines_alone(stderr)
            run(application, settings, announce, announce_stop, show_step)


def _check_model(model: str) -> None:
    """Raise `CheckpointError` or `StorageError` for a model that the server could not load."""
    from asap.storage.files import exists
    from asap.storage.location import Location
    from asap.weights.model_folder import check_folder

    if not model.startswith("s3://"):
        check_folder(model)
    elif not exists(Location.parse(model) / "config.json"):
        raise CheckpointError(f"model {model} is not a model folder: it has no config.json. Name one that has.")


def _check_port(host: str, port: int) -> None:
    """Raise `ConfigError` if the server could not listen there. Whatever else fails is left to the server."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except PermissionError as error:
            raise ConfigError(f"port {port} needs rights that you lack. Choose a --port of 1024 or more.") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(f"port {port} of {host} is in use. Choose another --port.") from error
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(f"host {host!r} is not an address of this machine. Choose another --host.") from error


def _check_room(settings: ServeSettings) -> None:
    """Raise `ConfigError` if the detectors do not fit into the running Ray, which would wait for room for ever."""
    from jobs.cluster import wait_for_resources

    needs = {"CPU": settings.detector_cpus, "GPU": settings.detector_gpus}
    needs = {kind: amount for kind, amount in needs.items() if amount}
    advice = "Lower min_replicas, detector_cpus or detector_gpus."
    wait_for_resources(needs, settings.min_replicas, 0, lambda _: None, advice)


def _refuse_options(context: typer.Context) -> None:
    """Raise `ConfigError` if an option stands before the subcommand, where it would be ignored."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            command = context.invoked_subcommand
            raise ConfigError(f"an option before {command} has no effect. Give it after: asap serve {command} …")


@serving.command("build")
def serve_build(
    model: Annotated[
        str, typer.Option(help="A model folder as an absolute path or s3://; or 'demo', the small model.")
    ] = "demo",
    host: Annotated[str, typer.Option(help="Address to listen on, on each machine.")] = "0.0.0.0",  # noqa: S104 - a server without keys refuses to start on it
    port: _Port = 8000,
    keys: _Keys = None,
    out: Annotated[Path | None, typer.Option(help="File to write. Default: print it.")] = None,
    change: Change = None,
) -> None:
    """Write the file for Ray's `serve deploy`: the application for a cluster, with all settings and no secret."""
    from serve.deploy import deploy_yaml, missing_keys_note
    from serve.settings import ServeSettings

    options = {"model": model, "host": host, "port": port, "keys_file": keys}
    settings = settings_of(ServeSettings, **(options | changes_of(change or [])))
    document = deploy_yaml(settings)
    if out is None:
        typer.echo(document, nl=False)
    else:
        try:
            out.write_text(document, encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"--out {str(out)!r} cannot be written: {error.strerror}. Choose another file."
            ) from error
    if note := missing_keys_note(settings):
        typer.echo(note, err=True)

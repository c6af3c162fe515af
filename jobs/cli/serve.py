"""`asap serve` and `asap serve build`: run a server on this machine, or write the file that deploys it on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asap.errors import ConfigError
from jobs.cli.options import MODEL_HELP, Change, changes_of, settings_of

serving = typer.Typer(invoke_without_command=True)
_Port = Annotated[int, typer.Option(help="Port to listen on.")]
_Keys = Annotated[str | None, typer.Option(help="File of API keys. Default: the variable ASAP_KEYS, if it is set.")]
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
    change: Change = None,
) -> None:
    """Detect manipulation online: run an API and a web page until stopped."""
    from serve.settings import ServeSettings

    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    if new_key is not None:
        from serve.api.keys import new_key as make

        key, line = make(new_key)
        typer.echo(f"key, for its holder:  {key}\nline, for the file:   {line}")
        return
    # Check the settings before the slow imports, so that a typing error is reported at once.
    options = {"model": model, "host": host, "port": port, "keys_file": keys}
    settings = settings_of(ServeSettings, **(options | changes_of(change or [])))
    from jobs.cluster import ray_running
    from serve.api.keys import Keyring
    from serve.app import build
    from serve.run import run

    application = build(settings)
    has_keys = bool(Keyring.load(settings.keys_file))

    def announce(url: str) -> None:
        typer.echo(f"serving {model} at {url} (API reference: {url}docs)")
        if not has_keys:
            typer.echo(_WITHOUT_KEYS)

    def announce_stop() -> None:
        deadline = f"within {settings.drain_s:g} s"
        typer.echo(f"stopping: accepted requests are answered {deadline}. Send the signal again to stop immediately.")

    # The logs of the replicas are shown: a line for each request, and why a replica cannot start.
    with ray_running(log_to_driver=True):
        run(application, settings, announce, announce_stop)


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
    from serve.deploy import deploy_yaml
    from serve.settings import ServeSettings

    options = {"model": model, "host": host, "port": port, "keys_file": keys}
    document = deploy_yaml(settings_of(ServeSettings, **(options | changes_of(change or []))))
    if out is None:
        typer.echo(document, nl=False)
        return
    try:
        out.write_text(document, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {str(out)!r} cannot be written: {error.strerror}. Choose another file.") from error

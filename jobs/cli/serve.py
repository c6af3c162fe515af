"""`asap serve` and `asap serve build`; what is slow to import is imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asap.errors import ConfigError
from jobs.cli.options import MODEL_HELP, Change, changes_of, settings_of

serving = typer.Typer(invoke_without_command=True)
_Port = Annotated[int, typer.Option(help="To listen on.")]
_Keys = Annotated[str | None, typer.Option(help="A file of keys; by default ASAP_KEYS, if it is set.")]
_WITHOUT_KEYS = (
    "The server has no keys: it answers this machine only. It cannot recognize a proxy on this machine that adds no "
    "header. Make a key before you put a proxy in front: asap serve --new-key NAME."
)


@serving.callback()
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "demo",
    host: Annotated[str, typer.Option(help="To listen on; anything but loopback needs keys.")] = "127.0.0.1",
    port: _Port = 8000,
    keys: _Keys = None,
    new_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make a key and its line for the file, and do nothing else.")
    ] = None,
    change: Change = None,
) -> None:
    """Judge pairs online: an API and a page, until it is stopped."""
    from serve.settings import ServeSettings

    if context.invoked_subcommand is not None:
        _check_nothing_given(context)
        return
    if new_key is not None:
        from serve.api.keys import new_key as make

        key, line = make(new_key)
        typer.echo(f"key, for its holder:  {key}\nline, for the file:   {line}")
        return
    given = {"model": model, "host": host, "port": port, "keys_file": keys}
    settings = settings_of(ServeSettings, **(given | changes_of(change or [])))
    from jobs.cluster import ray_running
    from serve.api.keys import Keyring
    from serve.app import build
    from serve.run import run

    application = build(settings)
    has_keys = bool(Keyring.load(settings.keys_file))

    def tell_ready(url: str) -> None:
        typer.echo(f"serving {model} at {url} (the API is told at {url}docs)")
        if not has_keys:
            typer.echo(_WITHOUT_KEYS)

    with ray_running(log_to_driver=True):  # the line of each request, and what a replica says that cannot start
        run(
            application,
            settings,
            tell_ready,
            lambda: typer.echo(
                f"stopping: what came is answered, within {settings.drain_s:g} s; to stop at once, once more"
            ),
        )


def _check_nothing_given(context: typer.Context) -> None:
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            command = context.invoked_subcommand
            raise ConfigError(f"an option before {command} does nothing; give it after: asap serve {command} …")


@serving.command("build")
def serve_build(
    model: Annotated[str, typer.Option(help="A model folder, whole path or s3://; or 'demo'.")] = "demo",
    host: Annotated[str, typer.Option(help="To listen on, on each machine.")] = "0.0.0.0",  # noqa: S104 - with keys
    port: _Port = 8000,
    keys: _Keys = None,
    out: Annotated[Path | None, typer.Option(help="The file; by default it is printed.")] = None,
    change: Change = None,
) -> None:
    """Write the file that Ray's 'serve deploy' takes: the application for a cluster, with all settings, no secret."""
    from serve.deploy import deploy_yaml
    from serve.settings import ServeSettings

    given = {"model": model, "host": host, "port": port, "keys_file": keys}
    told = deploy_yaml(settings_of(ServeSettings, **(given | changes_of(change or []))))
    if out is None:
        typer.echo(told, nl=False)
        return
    try:
        out.write_text(told, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {str(out)!r} cannot be written: {error.strerror}") from error

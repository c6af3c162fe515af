"""`asap submit`: run a command on a cluster from anywhere, by Ray's Jobs API."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from asap.errors import ConfigError
from asap.submission.entrypoint import new_submission_id
from asap.submission.token import find_token
from jobs.cli.options import checks_only
from jobs.errors import EXIT_STOPPED
from jobs.ray_address import DASHBOARD_PORT, dashboard_url
from jobs.submit.shared_paths import check_whole

if TYPE_CHECKING:
    from jobs.submit.job_server import JobServer

ON_CLUSTER = ("scan", "annotate", "train", "evaluate", "calibrate", "resume")
_OVER_JOBS = ("logs", "stop")
_DEFAULT = f"http://127.0.0.1:{DASHBOARD_PORT}"


def submit(
    context: typer.Context,
    command: Annotated[
        str,
        typer.Argument(
            help=f"The command to run: {', '.join(ON_CLUSTER)}. Or 'logs' or 'stop', with the id of a submitted job."
        ),
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Arguments and options of the command; see `asap COMMAND --help`.")
    ] = None,
    address: Annotated[
        str,
        typer.Option(
            envvar="RAY_API_SERVER_ADDRESS",
            help="The cluster's dashboard, http://HOST:8265, or the local end of a tunnel to it.",
        ),
    ] = _DEFAULT,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Show the log until the job ends, or print its id and leave.")
    ] = True,
    python: Annotated[
        str | None, typer.Option(help="Python on the cluster that has asap. Default: the one that Ray's workers run.")
    ] = None,
    stop_wait: Annotated[
        float, typer.Option("--stop-wait", min=0, help="Seconds that 'stop' waits until the job has ended.")
    ] = 120,
) -> None:
    """Run a command on a cluster, from any machine: asap submit scan s3://B/pairs.jsonl --out s3://B/scans.

    The log of the command is shown and its exit code is passed on. Ctrl-C stops watching, and the job goes on. The same
    command again resumes a job that was stopped. Options of submit may stand among those of the command.
    """
    url, typed = dashboard_url(address), arguments or []
    if command in _OVER_JOBS:
        if len(typed) != 1:
            raise ConfigError(f"asap submit {command} takes the id of one job, as asap submit printed it.")
        server = _connect(url)
        if command == "stop":
            _stop(server, typed[0], stop_wait)
        else:
            _follow(server, typed[0], "")
        return
    verb = _verb(context, command)
    folder = _checked(context, verb, command, typed).folder
    server = _connect(url)
    from jobs.submit.run import submit as run

    submission_id = new_submission_id(command)
    where = ["--address", "auto"] if any(parameter.name == "address" for parameter in verb.params) else []
    run(server, submission_id, command, [*where, *typed], python=python)
    if wait:
        _note(f"submitted {submission_id} to {url}. Ctrl-C stops watching; {_how_to_stop(url, submission_id, folder)}")
        _follow(server, submission_id, folder)
    else:
        _note(f"submitted to {url}. {_how_to_watch(url, submission_id, folder)}")
        typer.echo(submission_id)


def _verb(context: typer.Context, command: str) -> Any:
    if command not in ON_CLUSTER:
        raise ConfigError(f"command {command!r} cannot be submitted. Use {', '.join((*ON_CLUSTER, *_OVER_JOBS))}.")
    group: Any = context.find_root().command
    return group.commands[command]


class _Checked(NamedTuple):
    """A command whose options work."""

    values: dict[str, Any]
    """Its settings by name."""
    folder: str
    """Its job folder; empty for a command without one."""


def _checked(context: typer.Context, verb: Any, command: str, typed: Sequence[str]) -> _Checked:
    """Check a command as it does itself before it starts.

    Raises the errors of its options, and `ConfigError` for what does not work on another machine.
    """
    with verb.make_context(command, list(typed), parent=context.find_root()) as inner:
        if command == "resume":  # its settings are in the record, which perhaps only the cluster can read
            checked = _Checked({"out": inner.params["job"], "model": inner.params["model"]}, inner.params["job"])
        else:
            with checks_only() as found:
                verb.invoke(inner)
            checked = _describe(command, *found)
    check_whole(checked.values)
    if any(target.startswith(("http://", "https://")) for target in checked.values.get("notify", ())):
        raise ConfigError(
            "--notify with an address is not submitted: Ray would keep the address in its logs and its dashboard. "
            "Give a command that reads the address from a file of the cluster's head, or watch the job from here."
        )
    return checked


def _describe(command: str, settings: Any) -> _Checked:
    values = dict(settings)
    if command == "calibrate" and settings.model != "demo":
        values["out"] = settings.out or f"{settings.model}/policy.json"
    if command in ("scan", "annotate"):
        return _Checked(values, str(settings.job_folder))
    return _Checked(values, settings.out if command == "train" else "")


def _connect(url: str) -> JobServer:
    token = find_token()  # before Ray is imported, which reads the environment then
    from jobs.submit.job_server import JobServer

    return JobServer(url, token)


def _follow(server: JobServer, submission_id: str, folder: str) -> None:
    from jobs.submit.run import follow

    def show(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    try:
        code = follow(server, submission_id, show)
    except KeyboardInterrupt:
        _note(f"stopped watching. The job goes on. {_how_to_watch(server.url, submission_id, folder)}")
        raise typer.Exit(EXIT_STOPPED) from None
    if code:
        _note(f"{submission_id} {'was stopped' if code == EXIT_STOPPED else f'ended with exit code {code}'}")
    raise typer.Exit(code)


def _stop(server: JobServer, submission_id: str, wait_s: float) -> None:
    from jobs.submit.run import stop

    status = stop(server, submission_id, wait_s)
    typer.echo(f"{submission_id} is stopped" if status == "STOPPED" else f"{submission_id} had ended: {status}")


def _how_to_watch(url: str, submission_id: str, folder: str) -> str:
    logs = f"`asap submit logs {submission_id}{_option(url)}`"
    ways = f"{logs} or `asap watch {folder}`" if folder else logs
    return f"{ways} follows it; {_how_to_stop(url, submission_id, folder)}"


def _how_to_stop(url: str, submission_id: str, folder: str) -> str:
    stop = f"`asap submit stop {submission_id}{_option(url)}`"
    return f"{f'`asap cancel {folder}` or {stop}' if folder else stop} stops the job."


def _option(url: str) -> str:
    return "" if url == _DEFAULT else f" --address {url}"


def _note(line: str) -> None:
    typer.echo(line, err=True)

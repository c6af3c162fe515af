"""A command whose arguments strangers chose: the server runs it for requests, and no shell has read what they sent.

`python -m jobs.cli.requested` takes the arguments from an environment variable and runs the command as `asap` does.
`python -m jobs.cli.requested check` reads them from stdin and only checks the scan that they describe. It prints one
line of JSON: the job folder and what the scan would do, or the error and the exit code with which it would end.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import typer

from asap.errors import AsapError
from asap.submission.entrypoint import ARGUMENTS
from jobs.cli.app import app, main
from jobs.cli.options import checks_only


def check(arguments: list[str]) -> dict[str, Any]:
    """Return what a scan with these arguments would do, as the command itself finds before it starts Ray.

    The result has `folder` and `state` (`new`, `resumes` or `finished`), or `error` and `exit_code`.
    """
    command: Any = typer.main.get_command(app)
    try:
        with checks_only() as found:
            command.main(arguments, prog_name="asap", standalone_mode=False)
        return _plan(found[0])
    except typer.BadParameter as error:
        return {"error": error.format_message(), "exit_code": error.exit_code}
    except AsapError as error:
        return {"error": str(error), "exit_code": 1}


def _plan(settings: Any) -> dict[str, Any]:
    from jobs.scan.output.job_folder import check_resumable, is_finished
    from jobs.scan.plan import plan_scan
    from jobs.scan.steps import look_at_input

    plan = plan_scan(settings)
    record = check_resumable(plan.folder, plan.identity())
    if record is None:
        look_at_input(plan.source, settings, lambda progress: None)
    is_done = is_finished(plan.folder) and not settings.retry_errors
    state = "new" if record is None else "finished" if is_done else "resumes"
    return {"folder": plan.folder.uri, "state": state}


if __name__ == "__main__":
    if sys.argv[1:] == ["check"]:
        sys.stdout.write(json.dumps(check(json.load(sys.stdin))) + "\n")
    else:
        sys.argv = ["asap", *json.loads(os.environ.pop(ARGUMENTS))]
        main()

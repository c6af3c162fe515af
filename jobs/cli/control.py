"""The verbs over job folders: `asap status`, list, watch, cancel, resume, errors, results, report and delete.

They need no Ray and load no torch, but for `asap resume`, which does the work. All of them read and write the folder
alone, so they work from any terminal and any machine.
"""

from __future__ import annotations

import json
import sys
import webbrowser
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from asap.errors import ConfigError
from jobs.cli.options import RetryErrors, codes_of
from jobs.errors import EXIT_STOPPED, JobError
from jobs.ray_address import check_joining

if TYPE_CHECKING:
    import pyarrow as pa

    from asap.job_records.rows import RowFilter
    from asap.job_records.status import JobStatus
    from asap.storage.location import Location
    from jobs.control.result_query import Results
    from jobs.control.row_formats import Stream

_Job = Annotated[str, typer.Argument(metavar="JOB", help="Folder of a scan (OUT/JOB) or of a training run; or s3://.")]
_Scan = Annotated[str, typer.Argument(metavar="JOB", help="Folder of a scan, OUT/JOB; or s3://.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
_Codes = Annotated[list[str] | None, typer.Option("--code", help="Error code of the rows. Can be repeated.")]
_TABLE_ROWS = 50


def status(job: _Job, as_json: _Json = False) -> None:
    """Show the state of a job: counts, speed, time left, process, and its last sign of life."""
    from asap.job_records.status import read_status
    from asap.storage.location import Location
    from jobs.cli.display import print_plain
    from jobs.cli.job_tables import status_lines

    found = read_status(Location.parse(job))
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    for line in status_lines(found):
        print_plain(Console(), line)


def list_jobs(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or s3:// prefix that holds job folders.")],
    as_json: _Json = False,
) -> None:
    """List the jobs directly below a folder, the newest first."""
    from asap.job_records.status import list_jobs as find
    from asap.storage.location import Location
    from jobs.cli.display import print_tables
    from jobs.cli.job_tables import jobs_table

    found = find(Location.parse(out))
    if as_json:
        typer.echo(json.dumps({"out": out, "jobs": [status.to_json() for status in found]}))
    elif found:
        print_tables(Console(), jobs_table(found))
    else:
        typer.echo(f"there is no job folder directly below {out}")


def watch(
    job: _Job,
    every: Annotated[float, typer.Option(min=0, help="Fewest seconds between two lines that report counts.")] = 10,
    give_up_after: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds without a sign of life. Default: 60."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each change as a line of JSON.")] = False,
) -> None:
    """Follow a job until it ends, a line for each change. The exit code is that of the job.

    It is 0 for a completed job, 1 for one that failed or died, 3 for one with more errors than allowed, 4 for an
    unfamiliar input, 130 for a cancelled job.
    """
    from asap.job_records.status import exit_code
    from asap.storage.location import Location
    from jobs.cli.job_tables import status_line
    from jobs.control.follow import follow_job

    def show(now: JobStatus) -> None:
        typer.echo(json.dumps(now.to_json()) if as_json else status_line(now))
        sys.stdout.flush()  # a log or a pipe gets each line when it is new

    try:
        last = follow_job(Location.parse(job), show, every_s=every, give_up_after_s=give_up_after)
    except KeyboardInterrupt:
        typer.echo("stopped watching. The job goes on.", err=True)
        raise typer.Exit(EXIT_STOPPED) from None
    raise typer.Exit(exit_code(last))


def cancel(
    job: _Job,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until the job has ended.")] = 60,
    as_json: _Json = False,
) -> None:
    """Stop a job in an orderly way, from any machine. What was judged is written, and `asap resume` goes on."""
    from asap.job_records.status import read_status
    from asap.storage.location import Location
    from jobs.control.follow import cancel_job

    folder = Location.parse(job)
    had_ended = read_status(folder).has_ended
    last = cancel_job(folder, wait_s=wait, notify=_note)
    done = f"{last.counts.get('done', 0):,} of {last.counts.get('total', 0):,} pairs are done"
    if had_ended:
        sentence = f"{folder} had already ended: {last.state}"
    elif last.state == "cancelled":
        sentence = f"{folder} is cancelled: {done}. `asap resume {folder}` goes on."
    else:
        sentence = f"{folder} ended before it could be cancelled: {last.state}"
    typer.echo(json.dumps(last.to_json() | {"message": sentence}) if as_json else sentence)


def resume(
    job: _Job,
    allow_unfamiliar: Annotated[
        bool, typer.Option("--allow-unfamiliar", help="Go on with a scan that stopped because its input is unfamiliar.")
    ] = False,
    retry_errors: RetryErrors = None,
    model: Annotated[
        str | None, typer.Option(help="The model of a scan, if its folder is elsewhere now. It must be the same model.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Address of a running Ray cluster. Default: the one of the last start, if any.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Go on with a job that was stopped, with the settings of its own record."""
    from asap.job_records.status import ANNOTATE, TRAIN, read_status
    from asap.storage.location import Location
    from jobs.control.restart import annotate_settings, needs_no_restart, scan_settings, train_settings

    if address is not None:
        check_joining(address)
    found = read_status(Location.parse(job))
    if needs_no_restart(found) and not retry_errors:
        sentence = f"{found.folder} is finished"
        typer.echo(json.dumps(found.to_json() | {"message": sentence}) if as_json else sentence)
        return
    changes: dict[str, Any] = {} if address is None else {"address": address}
    if found.kind == TRAIN:
        if allow_unfamiliar or model or retry_errors:
            raise ConfigError(
                f"--allow-unfamiliar, --retry-errors and --model are for scans, and {found.folder} is a training run."
            )
        from jobs.cli.train import run_training

        run_training(train_settings(found, changes), as_json=as_json)
        return
    if found.kind == ANNOTATE:
        if allow_unfamiliar or model:
            raise ConfigError(
                f"--allow-unfamiliar and --model are for scans, and {found.folder} is a job of annotations."
            )
        from jobs.cli.annotate import run_annotation

        changes |= {"retry_errors": codes_of(retry_errors)}
        run_annotation(annotate_settings(found, changes), as_json=as_json)
        return
    from jobs.cli.scan import run_scan

    changes |= {"retry_errors": codes_of(retry_errors)}
    changes |= {"allow_unfamiliar": True} if allow_unfamiliar else {}
    changes |= {"model": model} if model else {}
    run_scan(scan_settings(found, changes), as_json=as_json)


def errors(
    job: _Scan,
    code: _Codes = None,
    limit: Annotated[int, typer.Option(min=0, help="Number of failed rows to show.")] = 20,
    as_json: _Json = False,
) -> None:
    """Show the rows that failed, by error code, and which of them may succeed on another try."""
    from asap.job_records.status import read_status
    from asap.storage.location import Location
    from jobs.cli.display import print_plain, print_tables
    from jobs.cli.job_tables import error_tables
    from jobs.control.result_query import Results, count_errors

    results = Results(read_status(Location.parse(job)))
    counts = count_errors(results, code or (), limit)
    if as_json:
        codes = [
            {"code": name, "count": count, "retryable": counts.retryable[name]}
            for name, count in counts.codes.most_common()
        ]
        document = {"rows_read": counts.rows_read, "errors": counts.failed, "codes": codes, "rows": counts.first}
        typer.echo(json.dumps(document | {"files_left_out": results.left_out}, ensure_ascii=False))
        return
    console = Console()
    if counts.codes:
        print_tables(console, error_tables(counts))
        if (shown := len(counts.first)) < counts.failed:
            print_plain(console, f"{shown:,} of {counts.failed:,} failed rows are shown; --limit shows more")
    else:
        print_plain(console, f"no failed rows{' with this code' if code else ''} among {counts.rows_read:,}")
    _note_left_out(results)


def results(
    job: _Scan,
    verdict: Annotated[
        list[str] | None,
        typer.Option(help="'manipulated', 'review', 'authentic' or 'unfamiliar'. Can be repeated: any of them."),
    ] = None,
    type: Annotated[
        list[str] | None, typer.Option(help="A flagged type, such as face_swap. Can be repeated: any of them.")
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Lowest score of pairs that were judged.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Highest score of pairs that were judged.")] = None,
    code: _Codes = None,
    id: Annotated[
        list[str] | None, typer.Option(help="Your own name for a pair: custom_id or given_id. Can be repeated.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Columns, as A,B,C. Default: all; in a table, a few.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"Number of rows. Default: all; in a table, {_TABLE_ROWS}.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="'table', 'jsonl', 'csv' or 'parquet'. Default: the suffix of --to; else a table in a terminal and "
            "jsonl in a pipe."
        ),
    ] = None,
    to: Annotated[str | None, typer.Option(help="File to write, or s3://. Default: the standard output.")] = None,
    flat: Annotated[
        bool,
        typer.Option(
            "--flat",
            help="No nested columns, for a spreadsheet: score_face_swap, box_x0 and so on; lists are joined by '; '.",
        ),
    ] = False,
    as_json: _Json = False,
) -> None:
    """Show or write result rows that pass a filter, also while the job runs.

    In a CSV, a text that a spreadsheet would run as a formula gets an apostrophe in front. Nested columns are JSON
    there, unless --flat is given.
    """
    from asap.job_records.rows import RowFilter
    from asap.job_records.status import read_status
    from asap.storage.files import open_write
    from asap.storage.location import Location
    from jobs.cli.display import print_tables
    from jobs.cli.job_tables import rows_table
    from jobs.control.result_query import Results
    from jobs.control.row_formats import choose_format, write_rows

    # Check the options before the store is asked.
    where = RowFilter(tuple(verdict or ()), tuple(type or ()), min_score, max_score, tuple(code or ()), tuple(id or ()))
    kind = choose_format(format, to, in_terminal=sys.stdout.isatty(), as_json=as_json)
    found = read_status(Location.parse(job))
    source = Results(found)
    wanted = [name.strip() for name in columns.split(",")] if columns else []
    wanted = wanted or (list(source.table_columns) if kind == "table" else [])
    shown, tables = _choose_rows(source, wanted, where, flat)

    if kind == "table":
        most = limit or _TABLE_ROWS
        rows = list(islice(_rows(tables), most + 1))
        print_tables(Console(), rows_table(shown.names, rows[:most]))
        if len(rows) > most:
            typer.echo(f"the first {most:,} rows; --limit shows more, --format and --to write all")
    else:
        target = None if to is None else _target(to, found.folder)
        out: AbstractContextManager[Stream] = nullcontext(sys.stdout.buffer) if target is None else open_write(target)
        with out as stream:
            count = write_rows(kind, stream, shown, _first(tables, limit), is_flat=flat)
            stream.flush()
        if target is not None:
            done = {"to": target.uri, "format": kind, "rows": count}
            typer.echo(json.dumps(done) if as_json else f"{count:,} rows: {target}")
    _note_left_out(source)


def _choose_rows(
    results: Results, wanted: list[str], where: RowFilter, flat: bool
) -> tuple[pa.Schema, Iterable[pa.Table]]:
    """Return the columns to show and the rows that pass the filter, which are read as they are taken.

    Args:
        results: The results of a scan.
        wanted: Names of columns. An empty list: all.
        where: The filter.
        flat: True for columns that are not nested.
    """
    from asap.job_records.rows import choose_columns, nullable_schema
    from jobs.control.flat_rows import flat_columns, flat_schema, flatten

    schema = results.schema()
    flat_by_name = flat_columns(schema)
    if not flat:
        names = choose_columns(wanted, schema, flat_by_name)
        return nullable_schema(names, schema), results.rows(names, where, schema)
    names = choose_columns(wanted, flat_schema(flat_by_name))
    stored = list(dict.fromkeys(flat_by_name[name].source for name in names))
    tables = (flatten(table, names, flat_by_name) for table in results.rows(stored, where, schema))
    return flat_schema({name: flat_by_name[name] for name in names}), tables


def _rows(tables: Iterable[pa.Table]) -> Iterator[dict[str, Any]]:
    for table in tables:
        yield from table.to_pylist()


def _first(tables: Iterable[pa.Table], limit: int | None) -> Iterator[pa.Table]:
    """Yield the first rows of all tables together; all of them without a limit."""
    left = limit
    for table in tables:
        yield table if left is None else table.slice(0, left)
        if left is not None and (left := left - table.num_rows) <= 0:
            return


def _target(to: str, folder: Location) -> Location:
    """Return the file to write; of a link, the file that it leads to.

    Raises `ConfigError` for a file in the job folder, where readers would find it, and for what is no file.
    """
    from asap.storage.location import Location

    target = Location.parse(to)
    if target.is_s3 or folder.is_s3:
        is_inside = target.uri.startswith(f"{folder.uri}/")
    else:
        is_inside = Path(target.uri).resolve().is_relative_to(Path(folder.uri).resolve())
    if is_inside:
        raise ConfigError(f"{target} is in the job folder. Choose a --to outside {folder}.")
    # The file is replaced once it is whole, which would remove a device such as /dev/stdout.
    if not target.is_s3 and (path := Path(target.uri)).exists():
        if not path.is_file():
            raise ConfigError(f"--to {target} is not a file. Name a file, or leave --to out for the standard output.")
        return Location(str(path.resolve())) if path.is_symlink() else target
    return target


def report(
    job: _Scan,
    rewrite: Annotated[
        bool, typer.Option("--rewrite", help="Write the report anew from the results that exist, unless the job runs.")
    ] = False,
    blur: Annotated[
        bool, typer.Option("--blur", help="With --rewrite: blur the pictures until a reader points at them.")
    ] = False,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="With --rewrite: leave all pictures out.")] = False,
    open: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
    as_json: _Json = False,
) -> None:
    """Print the address of a scan's report."""
    from asap.job_records.status import ANNOTATE, TRAIN, read_status
    from asap.storage.files import exists
    from asap.storage.location import Location
    from jobs.control.removal import check_idle
    from jobs.scan.output.report import write_report

    found = read_status(Location.parse(job))
    page = found.folder / "report" / "index.html"
    if found.kind == TRAIN:
        raise JobError(f"{found.folder} is a training run and has no report. The card of its model is model/README.md.")
    if found.kind == ANNOTATE:
        raise JobError(f"{found.folder} is a job of annotations and has no report. Its summary is annotations.json.")
    if open and page.is_s3:
        raise ConfigError(f"--open shows a report on this machine, and this one is at {page}. Download it first.")
    if blur and no_pictures:
        raise ConfigError("--blur and --no-pictures exclude each other. Give one of them.")
    if (blur or no_pictures) and not rewrite:
        raise ConfigError(f"{'--blur' if blur else '--no-pictures'} changes a report. Add --rewrite.")
    if rewrite:
        check_idle(found, _note)
        write_report(found.folder, pictures="none" if no_pictures else "blurred" if blur else None)
    elif not exists(page):
        raise JobError(
            f"{found.folder} has no report yet: its state is {found.state}. Give --rewrite to write one now."
        )
    typer.echo(json.dumps({"report": page.uri}) if as_json else page.uri)
    if open and not webbrowser.open(Path(page.uri).as_uri()):
        raise JobError(f"no browser was found on this machine. Open {page} by hand.")


def delete(
    job: _Job,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    as_json: _Json = False,
) -> None:
    """Delete a job folder with all that is in it, after a question. A job that runs is refused."""
    from asap.storage.location import Location
    from jobs.control.removal import check_deletable, check_idle, count_files, delete_job

    found = check_deletable(Location.parse(job), _note)
    files = count_files(found.folder)
    if not yes:
        typer.confirm(
            f"Delete {found.folder}, a {found.state} {found.kind} job of {files:,} files?", abort=True, err=True
        )
        check_idle(found, _note)  # the answer may have taken its time
    delete_job(found)
    sentence = f"{found.folder} is deleted: {files:,} files"
    typer.echo(json.dumps({"folder": found.folder.uri, "files": files}) if as_json else sentence)


def _note(line: str) -> None:
    typer.echo(line, err=True)


def _note_left_out(results: Results) -> None:
    if results.left_out:
        _note(f"{len(results.left_out)} files were left out, because the job changes them now: {results.left_out[0]}")

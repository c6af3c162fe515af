"""The routes of jobs: scans in bulk that a caller submits, follows, cancels and reads the rows of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from asap.job_records.rows import RowFilter
from asap.labels import TYPES, VERDICTS
from serve.api.callers.admission import Callers
from serve.api.deadline import deadline, loop_time
from serve.api.metrics import Metrics
from serve.api.middleware import trace_of
from serve.api.openapi import ERRORS, body_of
from serve.api.replays import HEADER, check_given_once
from serve.api.requests import RequestReader, known_query
from serve.errors import Refused
from serve.job_schemas import MAX_NAME_CHARS, MAX_ROWS, Job, JobList, JobRequest
from serve.jobs.desk import Caller, JobDesk, RowsAsked
from serve.settings import ServeSettings

_THREADS = 16
"""Requests of one process of the API that wait for a store or the cluster at once."""
_MOST_PAGE_S = 10.0
"""Seconds after which a page of rows ends. Ray's proxy would cut off a response that takes as long as any may."""
_JSON_LINES = "application/x-ndjson"
_Result = TypeVar("_Result")
_Id = Annotated[str, Path(alias="id", pattern="^[0-9a-f]{24}$", description="The id of the job.")]
_IdempotencyKey = Annotated[
    str | None,
    Header(
        alias=HEADER,
        min_length=1,
        max_length=255,
        pattern="^[!-~]+$",
        description="A name for this request, such as a random UUID. If it is sent again with the same name, it gets "
        "its job as it is now, and submits no other.",
    ),
]
_Names = Annotated[str, Query(max_length=MAX_NAME_CHARS)]
_Limit = Annotated[int, Query(ge=1, le=MAX_ROWS, description="Rows of the page at most.")]
_After = Annotated[
    str | None, Query(max_length=1100, description="Where the last page ended, as its header `Link` says.")
]
_Codes = Annotated[list[_Names] | None, Query(alias="code", max_length=100, description="Error codes: any of them.")]
_ROWS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Rows, one object of JSON a line. The header `Link` leads to the next page, if there is one.",
        "content": {_JSON_LINES: {"schema": {"type": "string"}}},
        "headers": {"Link": {"description": 'The next page: `<ADDRESS>; rel="next"`.', "schema": {"type": "string"}}},
    }
}


class JobRoutes:
    """The routes of jobs. They need a key with the scope `jobs` if the server has keys.

    Args:
        settings: Limits.
        desk: The jobs.
        callers: The callers of the API.
        metrics: Counters of this process.
    """

    def __init__(self, settings: ServeSettings, desk: JobDesk, callers: Callers, metrics: Metrics) -> None:
        self._settings = settings
        self._desk = desk
        self._callers = callers
        self._metrics = metrics
        self._reader = RequestReader(settings)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="jobs")
        self.router = APIRouter(responses=ERRORS)
        get, post = self.router.get, self.router.post
        sender, viewer = Depends(callers.admit("jobs")), Depends(callers.admit("jobs", "all-jobs"))
        nothing, listing = Depends(known_query()), Depends(known_query("limit"))
        pages = ("code", "limit", "after")
        failed = Depends(known_query(*pages, repeated=("code",)))
        found = Depends(
            known_query(
                *pages, "verdict", "type", "min_score", "max_score", "id", "columns",
                repeated=("code", "verdict", "type", "id"),
            )
        )  # fmt: skip
        post(
            "/v1/jobs", summary="Submit a scan in bulk", openapi_extra=body_of(JobRequest, form=False),
            dependencies=[sender, nothing], status_code=202,
        )(self.submit_job)  # fmt: skip
        get("/v1/jobs", summary="List jobs, the newest first", dependencies=[viewer, listing])(self.list_jobs)
        get("/v1/jobs/{id}", summary="Show a job", dependencies=[viewer, nothing])(self.show_job)
        post("/v1/jobs/{id}/cancel", summary="Cancel a job", dependencies=[viewer, nothing], status_code=202)(
            self.cancel_job
        )
        get(
            "/v1/jobs/{id}/results", summary="Read rows of a job", dependencies=[viewer, found],
            responses=_ROWS, response_class=Response,
        )(self.job_results)  # fmt: skip
        get(
            "/v1/jobs/{id}/errors", summary="Read failed rows of a job", dependencies=[viewer, failed],
            responses=_ROWS, response_class=Response,
        )(self.job_errors)  # fmt: skip

    async def submit_job(self, request: Request, idempotency_key: _IdempotencyKey = None) -> Job:
        """Send the options of a scan. The command checks them before the response.

        A job with the same folder goes on where it was stopped. A request that is sent again with the same
        `Idempotency-Key` gets its job as it is now.
        """
        trace = trace_of(request)
        check_given_once(request)
        self._callers.charge(trace, 1)
        async with deadline(self._settings.deadline_s, loop_time(), trace):
            asked = await self._reader.read_job(request)
            caller = self._caller(request)
            job, is_new = await self._run(lambda: self._desk.submit(caller, asked, idempotency_key))
        trace.job = job.id
        if is_new:
            self._metrics.key_jobs.labels(trace.key_name or "").inc()
        else:
            trace.is_replayed = True
            trace.headers["Idempotency-Replayed"] = "true"
        return job

    async def list_jobs(
        self, request: Request, limit: Annotated[int, Query(ge=1, le=1000, description="Jobs at most.")] = 100
    ) -> JobList:
        """List the jobs of the key or, with the scope `all-jobs`, also those of others and of the command line."""
        async with deadline(self._settings.deadline_s, loop_time(), trace_of(request)):
            caller = self._caller(request)
            return JobList(jobs=await self._run(lambda: self._desk.list_newest(caller, limit)))

    async def show_job(self, request: Request, id_: _Id) -> Job:
        """Show state, counts and addresses of a job, as `asap status` does."""
        return await self._of_job(request, id_, self._desk.show)

    async def cancel_job(self, request: Request, id_: _Id) -> Job:
        """Ask a job to stop in an orderly way, as `asap cancel` does. It ends soon after; what was judged is kept."""
        self._callers.charge(trace_of(request), 1)
        return await self._of_job(request, id_, self._desk.cancel)

    async def job_results(
        self,
        request: Request,
        id_: _Id,
        verdict: Annotated[list[Literal[VERDICTS]] | None, Query(description="Verdicts: any of them.")] = None,  # type: ignore[valid-type]
        type_: Annotated[
            list[Literal[TYPES]] | None,  # type: ignore[valid-type]
            Query(alias="type", description="Flagged types: any of them."),
        ] = None,
        min_score: Annotated[float | None, Query(ge=0, le=1, description="Lowest score.")] = None,
        max_score: Annotated[float | None, Query(ge=0, le=1, description="Highest score.")] = None,
        code: _Codes = None,
        given: Annotated[
            list[_Names] | None, Query(alias="id", max_length=100, description="Your own names of pairs: any of them.")
        ] = None,
        columns: Annotated[str | None, Query(max_length=1000, description="Columns, as A,B,C. Default: all.")] = None,
        limit: _Limit = 1000,
        after: _After = None,
    ) -> Response:
        """Read a page of the rows that pass a filter, as `asap results` does, also while the job runs.

        A page that takes long ends early, perhaps with few rows. A file that the running job replaces may be missed.
        """
        if min_score is not None and max_score is not None and min_score > max_score:
            raise Refused(422, "invalid_field", "min_score is above max_score", param="min_score")
        where = RowFilter(
            tuple(verdict or ()), tuple(type_ or ()), min_score, max_score, tuple(code or ()), tuple(given or ())
        )
        names = tuple(name.strip() for name in columns.split(",")) if columns else ()
        return await self._page(request, id_, where, names, limit, after)

    async def job_errors(
        self, request: Request, id_: _Id, code: _Codes = None, limit: _Limit = 1000, after: _After = None
    ) -> Response:
        """Read a page of the rows that failed, with their codes, as `asap errors` shows them."""
        where = RowFilter(codes=tuple(code or ()), is_failed=True)
        return await self._page(request, id_, where, (), limit, after)

    async def _page(
        self, request: Request, id_: str, where: RowFilter, columns: tuple[str, ...], limit: int, after: str | None
    ) -> Response:
        within_s = min(_MOST_PAGE_S, self._settings.deadline_s / 3)
        asked = RowsAsked(where, columns, after, limit, within_s)
        page = await self._of_job(request, id_, lambda caller, job: self._desk.rows(caller, job, asked))
        headers = {}
        if page.after is not None:
            query = [(name, value) for name, value in request.query_params.multi_items() if name != "after"]
            headers["Link"] = f'<{request.url.path}?{urlencode([*query, ("after", page.after)])}>; rel="next"'
        return Response(page.lines, media_type=_JSON_LINES, headers=headers)

    async def _of_job(self, request: Request, id_: str, work: Callable[[Caller, str], _Result]) -> _Result:
        trace = trace_of(request)
        trace.job = id_
        async with deadline(self._settings.deadline_s, loop_time(), trace):
            caller = self._caller(request)
            return await self._run(lambda: work(caller, id_))

    def _caller(self, request: Request) -> Caller:
        trace = trace_of(request)
        return Caller(trace.key_name, self._callers.may(trace, "all-jobs"))

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

import inspect
import io
from typing import Any

import pytest

from jobs.cli.replica_log import print_json_lines_alone

LINE = '{"time": "2026-01-01T00:00:00.000Z", "id": "mine-1"}'


def _batch(*lines: str) -> dict[str, Any]:
    return {"lines": list(lines), "pid": 7, "actor_name": "ServeReplica:asap:Api", "is_err": True, "ip": "127.0.0.1"}


def test_lines_of_json_are_alone_and_all_others_go_to_the_log_of_ray(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private import worker
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    printed: list[Any] = []
    other: list[Any] = []
    monkeypatch.setattr(dispatcher, "handlers", [("ray_print_logs", printed.append), ("other", other.append)])
    monkeypatch.setattr(worker, "print_to_stdstream", printed.append)
    stream = io.StringIO()
    print_json_lines_alone(stream)
    dispatcher.emit(_batch(LINE, "WARNING of Ray", LINE, f"behind {LINE}"))
    dispatcher.emit(_batch(LINE) | {"actor_name": None})
    worker.print_to_stdstream({"lines": ["An actor died"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert stream.getvalue() == f"{LINE}\n" * 3, "lines that look alike are all there"
    captured = capsys.readouterr()
    assert captured.out == ""
    name = "(ServeReplica:asap:Api pid=7)"
    assert captured.err.splitlines() == [
        f"{name} WARNING of Ray",
        f"{name} behind {LINE}",
        "(ray pid=raylet) An actor died",
    ]
    assert (printed, len(other)) == ([], 2)
    dispatcher.remove_handler("ray_print_logs")  # as Ray does when it shuts down
    assert [name for name, _ in dispatcher.handlers] == ["other"]


def test_ray_prints_by_the_function_that_is_replaced() -> None:
    """Fail if a later version of Ray renames what is private to it."""
    from ray._private import worker
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    assert worker.global_worker_stdstream_dispatcher is dispatcher
    assert "ray_print_logs" in inspect.getsource(worker.connect)
    assert "print_to_stdstream(" in inspect.getsource(worker.listen_error_messages)

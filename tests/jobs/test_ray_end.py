"""The end of Ray: no thread that uses Ray, and no signal, ends the process."""

import subprocess
import sys

from tests.support.waiting import HANG_S

RAY = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
STOPPED_AND_STOPPED_AGAIN = f"""
import os, signal, threading, time
import ray
from ray._private.node import Node
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from jobs import stops
from jobs.cluster import ray_running
from jobs.stops import in_background, stop_on_signals

end_processes = Node.kill_all_processes

def stop_again(*arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    print("the processes end")
    end_processes(*arguments, **options)

def work(is_stopped):
    for _ in ray.data.range(2).map(lambda row: time.sleep(600)).iter_internal_ref_bundles():
        pass

def executions():
    return [thread for thread in threading.enumerate() if isinstance(thread, StreamingExecutor)]

stop_on_signals()
stops._DEAF_S = 0
Node.kill_all_processes = stop_again
try:
    with ray_running(**{RAY}), in_background(work) as call:
        while not executions():
            assert not call.wait(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        call.wait()
except KeyboardInterrupt as second:
    print("stopped", isinstance(second.__context__, KeyboardInterrupt))
print("executions", executions(), ray.is_initialized())
"""
REFERENCE_FREED_LATE = f"""
import ray
from ray._private.worker import global_worker
from jobs.cluster import ray_running

class Worker:
    def __init__(self, worker):
        self.worker = worker

    def __getattr__(self, name):
        return getattr(self.worker, name)

    def shutdown_driver(self):
        self.worker.shutdown_driver()
        references.clear()
        print("freed")

with ray_running(**{RAY}):
    references = [ray.put(1)]
    global_worker.core_worker = Worker(global_worker.core_worker)
print("ended")
"""


def lines_of(script: str) -> list[str]:
    """Run a script in a process of its own, and return what it printed."""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert ended.returncode == 0, (ended.returncode, ended.stdout, ended.stderr)
    return ended.stdout.splitlines()


def test_a_second_signal_waits_for_the_end_of_ray_which_ends_an_execution_that_the_first_one_left() -> None:
    assert lines_of(STOPPED_AND_STOPPED_AGAIN) == ["the processes end", "stopped True", "executions [] False"]


def test_a_reference_that_is_freed_while_ray_ends_does_not_end_the_process() -> None:
    assert lines_of(REFERENCE_FREED_LATE) == ["freed", "ended"]

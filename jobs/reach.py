"""Paths of a job that the machines of a cluster must share, looked at from each machine before any work.

A local path names another file on each machine, unless the machines share the disk. So a small task on each machine
that may get work looks at the paths. What it writes to must be the folder that the driver sees, which a file shows that
the driver puts there. The machine of the driver is not asked, so a Ray of one machine costs nothing. Machines that come
while a job works are asked too.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from asap.storage.files import write_bytes
from asap.storage.location import Location, s3_uri
from jobs.cluster import check_possible, machines_alive, ray_running
from jobs.descriptions.settings import DEMO, DescriptionSettings
from jobs.errors import PathNotShared
from jobs.packing import Resources
from jobs.settings import ClusterSettings

_ANSWER_S = 120.0
"""Seconds in which a machine that is slow or lost may answer. Without an answer it is not judged."""
_MORE_S = 10.0
"""Seconds for further answers after the first one that names a path."""
_SAMPLED = 3
"""Pictures of an input that are looked at."""
_ROWS_LOOKED_AT = 100
"""Rows at the start of an input among which these pictures are found."""
_NAMED = 3
"""Machines that a message names."""
_LOOK_S = 2.0
"""Seconds between two looks for machines that came."""


@dataclass(frozen=True)
class PathUse:
    """A path that the workers of a job use."""

    what: str
    """Its name in messages, such as OUT or --model."""
    path: str
    """A local path, or an address in a bucket, which is the same on every machine."""
    writes: bool = False
    """True for a folder that the job writes into. It need not exist yet."""


@dataclass(frozen=True)
class _Look:
    """A path that each machine looks at."""

    path: str
    """A file or folder to read; or a folder to write into."""
    size: int | None = None
    """Bytes of a file."""
    marker: str | None = None
    """Name of a file in a folder to write into, which the driver has put there."""


def check_cluster(
    settings: ClusterSettings,
    uses: Sequence[PathUse],
    demands: Sequence[tuple[Resources, int]] = (),
    on_note: Callable[[str], None] = lambda note: None,
) -> None:
    """Join the cluster of a job for a moment, and refuse what it can never do. Without a cluster, nothing is done.

    Raises `PathNotShared` as `check_shared` does, and `ConfigError` as `check_possible` does.

    Args:
        settings: The cluster.
        uses: The paths of the job.
        demands: Resources of a worker, as far as the settings demand them, and how many of such workers they demand.
        on_note: Receives a sentence if there is no machine yet that could be asked about the paths.
    """
    if settings.address is None or not (_local(uses) or demands):
        return
    with ray_running(settings.address):
        for needs, workers in demands:
            check_possible(needs, workers, "Ask for less.", waits_for_people=settings.waits_for_people)
        note_unasked(uses, on_note)
        check_shared(uses)


def note_unasked(uses: Sequence[PathUse], on_note: Callable[[str], None]) -> None:
    """Report paths on the disk of this machine if the running Ray has no machine yet that works and could be asked."""
    local = _local(uses)
    if local and not any({"CPU", "GPU"} & machine.keys() for machine in machines_alive()):
        first, more = local[0], len(local) - 1
        on_note(
            f"{first.what} {first.path}{f' and {more} more paths' if more else ''} on the disk of this machine: the "
            "cluster has no machine for work yet, and each one that comes is asked if it sees the same files. If it "
            "does not, the job ends. Paths at s3:// are the same everywhere."
        )


def check_shared(uses: Sequence[PathUse]) -> None:
    """Check that each machine of the running Ray can use the paths as this one can.

    A path that this machine cannot read is left out: whoever planned the job has judged it. Raises `PathNotShared`,
    which names the paths, the machines and the way out.
    """
    machines = _other_machines()
    if not machines:
        return
    with _looks(_local(uses)) as looks:
        if looks:
            _refuse(machines, looks, _answers(_ask(machines, looks)))


@contextmanager
def late_machines_asked(uses: Sequence[PathUse]) -> Iterator[Callable[[], None]]:
    """Check the paths as `check_shared` does; provide a function that does so for machines that came since.

    The function does not wait: it asks machines in one call, and raises `PathNotShared` in a later one, once they have
    answered.
    """
    check_shared(uses)
    late = _LateMachines(_local(uses))
    try:
        yield late.check
    finally:
        late.stop_asking()


class _LateMachines:
    """The machines that come while a job works."""

    def __init__(self, uses: Sequence[PathUse]) -> None:
        """Take the machines that are there for those that were asked."""
        self._uses = uses
        self._known = {machine["NodeID"] for machine in _other_machines()}
        self._looked_s = self._asked_s = time.monotonic()
        self._new: list[dict[str, Any]] = []
        """The machines that are asked now."""
        self._looks: list[tuple[PathUse, _Look]] = []
        self._asked: dict[Any, str] = {}
        self._markers = ExitStack()

    def check(self) -> None:
        """Ask new machines, or read what they answered. Raises `PathNotShared`."""
        import ray

        now = time.monotonic()
        if not self._uses or not ray.is_initialized():
            return
        if not self._asked:
            if now - self._looked_s >= _LOOK_S:
                self._looked_s = now
                self._ask_new()
            return
        done, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        if len(done) == len(self._asked) or now - self._asked_s > _ANSWER_S:
            answers = _answers(self._asked, wait_s=0)
            self.stop_asking()
            _refuse(self._new, self._looks, answers)

    def stop_asking(self) -> None:
        """Take back the files that were put into folders for the machines to see."""
        self._asked = {}
        self._markers.close()

    def _ask_new(self) -> None:
        self._new = [machine for machine in _other_machines() if machine["NodeID"] not in self._known]
        if self._new:
            self._known |= {machine["NodeID"] for machine in self._new}
            self._looks = self._markers.enter_context(_looks(self._uses))
            self._asked, self._asked_s = _ask(self._new, self._looks), time.monotonic()


def _refuse(
    machines: Sequence[dict[str, Any]], looks: Sequence[tuple[PathUse, _Look]], answers: dict[str, list[str | None]]
) -> None:
    """Raise `PathNotShared` if a machine cannot use one of the paths.

    Args:
        machines: The machines that were asked.
        looks: The paths.
        answers: Their answers by their ids; see `look`.
    """
    sentences: dict[str, str] = {}
    for number, (use, look) in enumerate(looks):
        blocked = {node: reasons[number] for node, reasons in answers.items() if reasons[number]}
        if blocked:
            names = [_name(machine) for machine in machines if machine["NodeID"] in blocked]
            verb = "written to" if use.writes else "read"
            sentences.setdefault(
                use.what,
                f"{use.what} {use.path if use.writes else look.path} cannot be {verb} on {_listed(names)} of "
                f"{len(_other_machines()) + 1} machines: {next(iter(blocked.values()))}.",
            )
    if sentences:
        raise PathNotShared(
            f"{' '.join(sentences.values())} Put {'it' if len(sentences) == 1 else 'them'} at s3://, or in a folder "
            "that all machines share."
        )


def model_use(model: str) -> list[PathUse]:
    """Return the use of a model: the weights in its folder. None is needed of `demo`, which each machine has."""
    return [] if model == "demo" else [PathUse("--model", f"{model}/model.safetensors")]


def engine_use(what: str, settings: DescriptionSettings | None) -> list[PathUse]:
    """Return the use of a captioner or explainer: its file, or the configuration in the folder of its model."""
    if settings is None or settings.engine == "openai":
        return []
    if settings.engine == "transformers" and settings.source == DEMO:
        return []  # each machine has it in its own installation
    if settings.engine == "precomputed":
        return [PathUse(what, settings.source)]
    # A model that has no folder here has a name on the hub, which each machine downloads.
    is_folder = Path(settings.source).expanduser().is_dir()
    return [PathUse(what, f"{settings.source}/config.json")] if is_folder else []


def pictures_use(what: str, addresses: Iterable[str | Path | None]) -> list[PathUse]:
    """Return the use of the first of some pictures that lie on this machine."""
    local = (str(address) for address in addresses if address and s3_uri(str(address)) is None)
    return [PathUse(what, address) for address in islice(local, _SAMPLED)]


def input_use(input: Location, addresses: Iterable[str | Path | None]) -> list[PathUse]:
    """Return the use of the pictures at the start of an input. Those of an input in a bucket are in buckets too."""
    return [] if input.is_s3 else pictures_use("INPUT", islice(addresses, _ROWS_LOOKED_AT))


def _local(uses: Sequence[PathUse]) -> list[PathUse]:
    return [use for use in uses if not Location.parse(use.path).is_s3]


def _other_machines() -> list[dict[str, Any]]:
    """Return the live machines that may get work, but for that of this process."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return [
        node
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and {"CPU", "GPU"} & node["Resources"].keys()
    ]


@contextmanager
def _looks(uses: Sequence[PathUse]) -> Iterator[list[tuple[PathUse, _Look]]]:
    """Provide the paths to look at, with a file in each folder to write into for the time of the block."""
    looks: list[tuple[PathUse, _Look]] = []
    markers: list[Path] = []
    try:
        for use in uses:
            path = Path(Location.parse(use.path).uri)
            if use.writes:
                marker = _nearest(path) / f".asap-probe-{secrets.token_hex(4)}"
                write_bytes(Location(str(marker)), b"")
                markers.append(marker)
                looks.append((use, _Look(str(marker.parent), marker=marker.name)))
            elif os.access(path, os.R_OK):
                looks.append((use, _Look(str(path), path.stat().st_size if path.is_file() else None)))
        yield looks
    finally:
        for marker in markers:
            marker.unlink(missing_ok=True)


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _ask(machines: Sequence[dict[str, Any]], looks: Sequence[tuple[PathUse, _Look]]) -> dict[Any, str]:
    """Start a look at the paths on each machine; return the ids of the machines by the references of their answers."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for machine in machines:
        there = NodeAffinitySchedulingStrategy(machine["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(look)
        asked[task.remote([each for _, each in looks])] = machine["NodeID"]
    return asked


def _answers(asked: dict[Any, str], wait_s: float = _ANSWER_S) -> dict[str, list[str | None]]:
    """Return the answers of the machines by their ids; see `look`. Machines that do not answer are left out.

    Args:
        asked: What `_ask` returned.
        wait_s: Seconds to wait for all of them.
    """
    import ray

    answers: dict[str, list[str | None]] = {}
    waiting, deadline = list(asked), time.monotonic() + wait_s
    while waiting:
        done, waiting = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        for reference in done:
            try:
                answers[asked[reference]] = ray.get(reference)
            except ray.exceptions.RayError as error:  # the machine is lost, or runs other code: its work will say so
                logging.getLogger("asap").debug("a machine did not look at the paths: %s", error)
            if any(answers.get(asked[reference], ())):
                deadline = min(deadline, time.monotonic() + _MORE_S)
        if not done:
            break
    for reference in waiting:
        ray.cancel(reference, force=True)
    return answers


def look(looks: Sequence[_Look]) -> list[str | None]:
    """Return for each path the reason why this machine cannot use it; None if it can. It runs on each machine."""
    return [_obstacle(one) for one in looks]


def _obstacle(one: _Look) -> str | None:
    path = Path(one.path)
    try:
        if one.marker is None:
            return _unreadable(path, one.size)
        if not (path / one.marker).exists():
            return "it is another folder there"
        own = path / f"{one.marker}-{secrets.token_hex(4)}"
        own.touch(exist_ok=False)
        own.unlink()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def _unreadable(path: Path, size: int | None) -> str | None:
    found = path.stat()
    if size is None:
        with os.scandir(path):  # raises if it may not be listed
            return None
    with path.open("rb"):  # raises if it may not be read
        return None if found.st_size == size else f"it is another file there, of {found.st_size:,} bytes for {size:,}"


def _name(machine: dict[str, Any]) -> str:
    return f"{machine['NodeManagerHostname']} ({machine['NodeManagerAddress']})"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} ({', '.join(names[:_NAMED])}{more})"

"""A pilot: a scan of a seeded sample in this process, without Ray, and what follows from it for a whole input.

The sample goes the way of a scan: the same preparation, the same detector, the same result rows. Its chunks are timed
apart, so that their times show how much they vary. What a pilot cannot see is said in docs/scan.md.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, stdev
from typing import Any

import pyarrow as pa

from asap.errors import ConfigError
from asap.preprocessing.text import read_reader_source
from asap.weights.model_folder import check_folder, model_config
from jobs.errors import JobError
from jobs.scan.input.manifest import ManifestRow, to_table
from jobs.scan.settings import ScanSettings
from jobs.scan.stages.prepare import Preparation, prepare_batch

Interval = tuple[float, float, float]
"""A value, and the ends of its interval."""
_CHUNKS = 8
"""Fewest parts of a pilot that are timed apart."""
_SPREAD = 2.0
"""Standard errors from the mean to the ends of an interval."""


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of values, and the ends of its interval of two standard errors."""
    center = mean(values)
    width = _SPREAD * stdev(values) / len(values) ** 0.5 if len(values) > 1 else center
    return center, max(0.0, center - width), center + width


@dataclass(frozen=True)
class Fleet:
    """Machines of one kind, and prices."""

    machines: int = 1
    cpus: int = 1
    """CPUs of a machine, as fast as those of the pilot."""
    gpus: int = 0
    """GPUs of a machine, of the kind of the pilot's."""
    machine_price: float = 0
    """Price of an hour of one machine, in any currency."""
    get_price: float = 0
    """Price of 1,000 GET requests."""


@dataclass(frozen=True)
class Pilot:
    """The cost of the pairs of a sample."""

    device: str
    """The device of the model: `cpu`, or `cuda`."""
    pairs: int
    failed: int
    """Pairs that have an error instead of a verdict."""
    verdicts: dict[str, int]
    """Pairs by verdict."""
    pairs_per_s: Interval
    """Pairs a second of one detector, while nothing else runs; the ends are those of the seconds of a pair."""
    prepare_cpu_s: Interval
    """CPU seconds of a pair until it reaches the detector, to fetch, decode and resize its picture."""
    detect_cpu_s: Interval
    """CPU seconds of a pair in the detector."""
    gets_per_row: float
    """GET requests to S3 for a row of the sample."""

    def to_json(self) -> dict[str, Any]:
        """Return the pilot as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Forecast:
    """A whole scan on a fleet, by its pilot."""

    rows: int
    fleet: Fleet
    hours: Interval
    bound: str
    """The bottleneck that the hours follow from: `gpu`, else `cpu`."""
    cpus_per_gpu: float | None
    """CPUs that keep one GPU fed. None without GPUs."""
    gets: int
    """GET requests to S3."""
    price: Interval | None
    """Price of machines and requests. None if no price is given."""

    def to_json(self) -> dict[str, Any]:
        """Return the forecast as JSON."""
        return asdict(self)


@dataclass
class _Timer:
    """Seconds of a pair, of each chunk."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def time(self, pairs: int, work: Any) -> Any:
        """Return the result of some work on a chunk of pairs, and note what one of them took."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.wall_s.append((time.perf_counter() - wall) / pairs)
        self.cpu_s.append((time.process_time() - cpu) / pairs)
        return result


def device_of(settings: ScanSettings) -> str:
    """Return the device on which a model runs in this process."""
    import torch

    return settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def run_pilot(settings: ScanSettings, rows: Sequence[ManifestRow], fleet: Fleet) -> Pilot:
    """Scan a sample in this process, and return what its pairs cost.

    Raises `ConfigError` for a fleet with GPUs if the model runs on a CPU here, `JobError` if no pair of the sample can
    be judged, and the errors of a model folder and of a device.

    Args:
        settings: Settings of the scan. Captions and explanations are left out.
        rows: The sample, in the order of the input.
        fleet: The machines of the forecast.
    """
    if not rows:
        raise JobError("the pilot has no pair, because no row of the input could be understood. Look at the input.")
    folder = check_folder(settings.model).resolve()
    from jobs.scan.stages.detect import Detection, Detector

    device = device_of(settings)
    if fleet.gpus and device == "cpu":
        raise ConfigError(
            f"--machine-gpus {fleet.gpus} cannot be forecast: the pilot runs on a CPU, which says nothing about a GPU. "
            "Run it on a machine with such a GPU, or leave --machine-gpus out."
        )
    if device != "cpu" and not fleet.gpus:
        raise ConfigError(
            f"--machine-gpus 0 cannot be forecast: the pilot runs on {device}, which says nothing about a CPU. Add "
            "--device cpu."
        )
    batch_size = settings.batch_size_on(device)
    detection = Detection(
        str(folder),
        device,
        settings.precision,
        batch_size=batch_size,
        min_text_read=settings.min_text_read,
        job="pilot",
    )
    detector = Detector(detection)
    config = model_config(folder)
    reader = read_reader_source(folder / "tokenizer", max_words=config.max_words, max_tokens=config.max_tokens)
    preparation = Preparation(config.image_size, settings.image_limits, settings.fetch, reader=reader)
    # A GPU is only as fast as in a scan if its batches are those of a scan.
    size = batch_size if device != "cpu" else max(1, min(batch_size, -(-len(rows) // _CHUNKS)))
    preparing, detecting = _Timer(), _Timer()
    results: list[pa.Table] = []
    for start in range(0, len(rows), size):
        chunk = to_table(rows[start : start + size])
        prepared = preparing.time(len(chunk), lambda chunk=chunk: prepare_batch(chunk, preparation))
        if not results:
            detector(prepared)  # the first batch of a device takes longer than those that follow
        results.append(detecting.time(len(chunk), lambda prepared=prepared: detector(prepared)))
    outcomes = pa.concat_tables(results)
    verdicts = Counter(verdict for verdict in outcomes["verdict"].to_pylist() if verdict is not None)
    if not verdicts:
        detail = next(filter(None, outcomes["error_detail"].to_pylist()))
        raise JobError(f"no pair of the pilot of {len(rows)} could be judged: {detail}. Look at the input.")
    seconds = interval(detecting.wall_s)
    return Pilot(
        device=device,
        pairs=len(rows),
        failed=len(rows) - verdicts.total(),
        verdicts=dict(verdicts),
        pairs_per_s=(1 / seconds[0], 1 / seconds[2], 1 / seconds[1] if seconds[1] else 1 / min(detecting.wall_s)),
        prepare_cpu_s=interval(preparing.cpu_s),
        detect_cpu_s=interval(detecting.cpu_s),
        gets_per_row=_gets(rows) / len(rows),
    )


def _gets(rows: Sequence[ManifestRow]) -> int:
    """Return the GET requests of the rows: one for each picture and each text file.

    The pictures of a row group of Parquet share theirs, which are too few to count.
    """
    pictures = sum(_is_s3(row.image_uri) and row.image_group is None for row in rows)
    texts = sum(_is_s3(row.text_uri) for row in rows)
    return pictures + texts


def _is_s3(uri: str | None) -> bool:
    return uri is not None and uri.startswith("s3://")


def forecast(pilot: Pilot, rows: int, fleet: Fleet) -> Forecast:
    """Return what a scan of so many rows takes on a fleet.

    On CPUs, the CPU seconds of preparation and detector add up and all CPUs share them. With GPUs, the slower of the
    two decides: the detectors, one a GPU, or the CPUs, which prepare the pairs and run the host's part of a detector.
    """
    cpus, gpus = fleet.machines * fleet.cpus, fleet.machines * fleet.gpus
    cpu_s: list[float] = [a + b for a, b in zip(pilot.prepare_cpu_s, pilot.detect_cpu_s, strict=True)]
    by_cpu = [rows * each / cpus / 3600 for each in cpu_s]
    rates = pilot.pairs_per_s
    by_gpu = [rows / (each * gpus) / 3600 for each in (rates[0], rates[2], rates[1])] if gpus else [0.0] * 3
    hours = tuple(max(pair) for pair in zip(by_cpu, by_gpu, strict=True))
    gets = round(rows * pilot.gets_per_row)
    price = None
    if fleet.machine_price or fleet.get_price:
        requests = gets / 1000 * fleet.get_price
        price = tuple(each * fleet.machines * fleet.machine_price + requests for each in hours)
    return Forecast(
        rows=rows,
        fleet=fleet,
        hours=(hours[0], hours[1], hours[2]),
        bound="gpu" if by_gpu[0] > by_cpu[0] else "cpu",
        cpus_per_gpu=rates[0] * cpu_s[0] if gpus else None,
        gets=gets,
        price=(price[0], price[1], price[2]) if price else None,
    )

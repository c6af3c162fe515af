"""The events that a training run reports while it prepares and trains.

{"phase": words}                                work has begun that has no count, such as "reading the corpus"
{"start": source, "report": text}              a source of weights was read
{"corpus": [line, ...], "ingest": name}        the corpus was read; `ingest` is "cache" or "stream"
{"stage": name, "done": count, "total": count} pictures or pairs are being read, for the splits, the test or the
                                               familiarity
{"note": sentence}                             the machines differ from what was requested, settings have other defaults
                                               than usual, or the familiarity is done
{"pairs": count, "of": count, ...}             a line of `progress.jsonl`
"""

from collections.abc import Callable
from typing import Any

OnEvent = Callable[[dict[str, Any]], None]
"""A function that is called with each event."""

"""Local paths of a submitted command. Relative ones mean a folder of the machine that submits, and are refused.

The machines of the cluster may not share the others. The command itself asks them before it begins (`jobs.reach`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asap.errors import ConfigError
from asap.storage.location import Location

_PATHS = ("input", "corpus", "test_corpus", "model", "pictures", "out")
_OWN_FILES = ("log_file", "metrics_targets")
"""Files that the machine with the command writes for itself."""


def local_paths(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the local paths among the settings of a command as they were typed, by the name of the setting.

    Args:
        values: The settings by name. Names of hubs, and the model `demo`, are no paths.
    """
    found = {name: values[name] for name in _PATHS if isinstance(values.get(name), str)}
    if found.get("model") == "demo":
        del found["model"]
    for name in ("captions", "explanations"):
        described = values.get(name)
        if isinstance(described, list):
            found |= {f"{name}[{number}]": path for number, path in enumerate(described)}
        elif described is not None and _is_path(described.engine, described.source):
            found[f"{name}.source"] = described.source
    tokenizer = values.get("tokenizer")
    if tokenizer and tokenizer != "train" and _is_folder(tokenizer):
        found["tokenizer"] = tokenizer
    for split, files in (values.get("files") or {}).items():  # other names are those of files in the corpus
        starts = ("/", "file://", "./", "../", "~")
        found |= {f"files.{split}[{number}]": file for number, file in enumerate(files) if file.startswith(starts)}
    for number, source in enumerate(values.get("init") or ()):
        path = source.removeprefix("timm:").removeprefix("bert:")
        if source != "demo" and (path == source or Path(path).exists()):
            found[f"init[{number}]"] = path
    return {name: path for name, path in found.items() if not Location.parse(path).is_s3}


def _is_path(engine: str, source: str) -> bool:
    """Return True if the source of captions is a file or folder, and not a name of a hub or of an endpoint."""
    return engine == "precomputed" or (engine == "transformers" and _is_folder(source))


def _is_folder(name: str) -> bool:
    """Return True if a name that may be one of a hub is the path of a folder."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()


def check_whole(typed: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a relative path in the settings, which no other machine can find."""
    own = {name: typed[name] for name in _OWN_FILES if typed.get(name) not in (None, "-")}
    for name, path in (local_paths(typed) | own).items():
        if not path.startswith(("/", "file://")):
            raise ConfigError(
                f"{name} {path!r} is relative to a folder of this machine, and the machines of a cluster do not see "
                "it. Give s3://, or the whole path of a folder that all of them share."
            )

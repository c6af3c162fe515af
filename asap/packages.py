"""Imports of this program's packages, made before a folder with the same name can come first on the import path.

Ray puts the driver's working directory first on the import path of its workers, as `python -m` does with the current
directory. A user may well have a folder called `jobs` there, which Python would take for the package.
"""

from __future__ import annotations

import importlib
from pathlib import Path

_PACKAGES = ("asap", "jobs", "serve")
FOLDER = Path(__file__).resolve().parents[1]
"""The folder in which the packages lie. A process that puts it first on its path finds them, installed or not."""
SETUP_HOOK = "asap.packages.import_packages"
"""Import path of `import_packages`, in the form of Ray's `worker_process_setup_hook`."""


def import_packages() -> None:
    """Import each package, so that its modules are looked up in its own folder from now on."""
    for name in _PACKAGES:
        importlib.import_module(name)

"""The packages of this program, imported before another folder of the same name can come first on the path.

Ray puts the driver's working folder first on the path of its workers, as `python -m` does with its own. A folder that
is called `jobs` there, which a user may well have, would be taken for the package.
"""

from __future__ import annotations

import importlib
from pathlib import Path

_PACKAGES = ("asap", "jobs", "serve")
FOLDER = Path(__file__).resolve().parents[1]
"""The folder in which the packages lie. A process that puts it first on its path finds them, installed or not."""
SETUP_HOOK = "asap.packages.import_packages"
"""Import path of `import_packages`, as Ray's `worker_process_setup_hook` takes it."""


def import_packages() -> None:
    """Import each package, so that its modules are looked up in its own folder from now on."""
    for name in _PACKAGES:
        importlib.import_module(name)

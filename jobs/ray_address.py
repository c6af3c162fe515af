"""Addresses of a Ray cluster: a job joins it on one of its machines, and `asap submit` reaches it from anywhere.

Each takes another form, and Ray answers the wrong one with a timeout. So the form is checked first.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from asap.errors import ConfigError

DASHBOARD_PORT = 8265


def host_of(address: str) -> str:
    """Return the host of an address, or HOST for an address that has none."""
    try:
        found = urlsplit(address if "://" in address else f"//{address}").hostname
    except ValueError:  # a bracket that is not closed
        found = None
    if not found or found in ("auto", "local"):
        return "HOST"
    return f"[{found}]" if ":" in found else found


def joining_problem(address: str) -> str | None:
    """Return the reason why a job cannot join a cluster at an address of this form; None if it can."""
    if address == "local":
        return "leave the address out to start Ray on this machine."
    scheme, separator, _ = address.partition("://")
    if not separator:
        return None
    inside = f"on a machine of the cluster give 'auto' or {host_of(address)}:6379"
    if scheme.lower() in ("http", "https"):
        return f"this is a dashboard, to which asap submit sends commands. For a job {inside}."
    outside = f"from outside send the command with asap submit --address http://{host_of(address)}:{DASHBOARD_PORT}"
    problem = "asap does not run through Ray Client" if scheme.lower() == "ray" else "no cluster has such an address"
    return f"{problem}. For a job {inside}; {outside}."


def check_joining(address: str) -> None:
    """Raise `ConfigError` for an address at which a job cannot join a cluster."""
    if problem := joining_problem(address):
        raise ConfigError(f"address {address!r}: {problem}")


def dashboard_url(address: str) -> str:
    """Return the URL of a dashboard, without a slash at its end. Raises `ConfigError` for any other address."""
    scheme, separator, rest = address.partition("://")
    if not separator or scheme.lower() not in ("http", "https") or host_of(address) == "HOST":
        raise ConfigError(
            f"address {address!r} is not that of a dashboard, to which asap submit sends commands. Give "
            f"http://{host_of(address)}:{DASHBOARD_PORT}, or the local end of a tunnel to it."
        )
    if "@" in rest:
        raise ConfigError("the address of the dashboard holds a user or a password. Leave it out: Ray takes a token.")
    return address.rstrip("/")

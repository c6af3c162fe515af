"""The token of a cluster, where Ray itself looks for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from asap.errors import JobError

HOW_TO_GIVE = (
    "Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it, or copy the cluster's token to ~/.ray/auth_token."
)


class Token(NamedTuple):
    """A token, and where it was found."""

    value: str
    source: str

    def __repr__(self) -> str:
        return f"Token(source={self.source!r})"


def find_token() -> Token | None:
    """Return the token, and set RAY_AUTH_MODE so that Ray sends it too; None if there is none or RAY_AUTH_MODE bars it.

    Raises `JobError` if RAY_AUTH_TOKEN_PATH cannot be read.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    token = read_token()
    if token is not None:
        os.environ["RAY_AUTH_MODE"] = "token"
    return token


def read_token() -> Token | None:
    """Return the token, or None if there is none. Raises `JobError` if RAY_AUTH_TOKEN_PATH cannot be read."""
    if value := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return Token(value, "RAY_AUTH_TOKEN")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        value = file.read_text().strip()
    except (OSError, ValueError) as error:
        if not named and isinstance(error, FileNotFoundError):
            return None
        raise JobError(f"the token in {file} cannot be read: {error}. {HOW_TO_GIVE}") from error
    return Token(value, str(file)) if value else None

"""The check of callers, and their charge: a server with keys asks for one, any other answers its own machine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from fastapi import Request

from serve.api.callers.current_keys import CurrentKeys
from serve.api.callers.keys import Scope
from serve.api.callers.local import check_is_local
from serve.api.callers.rates import Rates
from serve.api.middleware import Trace
from serve.errors import Refused
from serve.schemas import KeyState
from serve.settings import ServeSettings


class Callers:
    """The callers of one process of the API, by their keys.

    Args:
        settings: The rate of a key, and the sites whose pages may call a server without keys.
        keys: The keys of the server.
    """

    def __init__(self, settings: ServeSettings, keys: CurrentKeys) -> None:
        self._settings = settings
        self._keys = keys
        self._rates = Rates(settings.key_rate, settings.key_burst)

    def admit(self, *scopes: Scope) -> Callable[[Request], Awaitable[None]]:
        """Return a dependency that admits the holder of a key with one of these scopes; without any, of any key.

        If the server has no keys, it admits this machine's own programs and pages.
        """

        async def identify(request: Request) -> None:
            if not self._keys.are_needed:
                check_is_local(request, self._settings.cors_origins)
                return
            await self._keys.refresh()
            kind, _, sent = request.headers.get("authorization", "").partition(" ")
            key = self._keys.keyring.find(sent.strip()) if kind.lower() == "bearer" else None
            if key is None:
                message = "the key is missing or unknown. Send a known key as 'Authorization: Bearer KEY'."
                raise Refused(401, "unauthorized", message)
            trace: Trace = request.state.trace
            trace.key_name = key.name
            trace.headers |= self._rates.state(key.name).headers()
            if key.has_expired(datetime.now(UTC)):
                message = f"the key {key.name} has expired. Ask the operator of this server for another one."
                raise Refused(401, "unauthorized", message)
            if scopes and not set(scopes) & set(key.scopes):
                lacks = f"it lacks the scope {' or '.join(scopes)}"
                message = f"the key {key.name} may not be used for this route: {lacks}"
                raise Refused(403, "scope_missing", message)

        return identify

    def may(self, trace: Trace, scope: Scope) -> bool:
        """Return True if the key of an admitted caller has a scope. If the server has no keys, its callers have all."""
        if trace.key_name is None:
            return True
        key = self._keys.keyring.keys.get(trace.key_name)
        return key is not None and scope in key.scopes

    def charge(self, trace: Trace, passes: int, *, paid: int = 0) -> None:
        """Charge a caller for passes of the model, beyond those that it has paid for the same request.

        Raises `Refused` (429). The headers of the response say what is left.
        """
        if passes and trace.key_name is not None:
            try:
                self._rates.take(trace.key_name, passes, paid=paid)
            finally:
                trace.headers |= self._rates.state(trace.key_name).headers()

    def key_state(self, trace: Trace) -> KeyState | None:
        """Return what the key of a caller may be used for; None if the server has no keys."""
        key = self._keys.keyring.keys.get(trace.key_name) if trace.key_name is not None else None
        if key is None:
            return None
        state = self._rates.state(key.name)
        return KeyState(
            name=key.name,
            scopes=list(key.scopes),
            expires=key.expires,
            pairs_per_second=self._settings.key_rate,
            burst=state.limit,
            remaining=state.remaining,
            reset_s=round(state.reset_s, 3),
        )

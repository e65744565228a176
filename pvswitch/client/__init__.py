# SPDX-License-Identifier: Apache-2.0
"""The Python client of the HTTP API: `AsyncClient`, and `Client` for programs without an event loop.

    with Client() as switch:
        for port in switch.ports():
            print(port.name, port.state.link)

Both have the same calls, those of `pvswitch.client.operations`; their answers are the models of the API. Errors are
one clear sentence each: `NotRunning`, `NotAllowed`, and `ApiError` with the problem+json. Nothing of the switch itself
is imported: a program elsewhere can use it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pvswitch.client.events import Event
from pvswitch.client.faces import Awaited, Blocking
from pvswitch.client.operations import Config, Operations, PlanResult
from pvswitch.client.transport import (
    ANY,
    TIMEOUT_SECONDS,
    ApiError,
    Json,
    NotAllowed,
    NotRunning,
    Transport,
    not_allowed_message,
)

__all__ = [
    "ANY",
    "ApiError",
    "AsyncClient",
    "Client",
    "Config",
    "Event",
    "Json",
    "NotAllowed",
    "NotRunning",
    "PlanResult",
    "not_allowed_message",
]


class AsyncClient(Operations, Awaited):
    """A client for programs with an event loop; `async with` closes its connections."""

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        ca: Path | str | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        """`address` is unix:PATH, http://HOST:PORT or https://HOST:PORT; PvswitchError when it is none of them.

        Absent ones come from the environment: `address` from PVSWITCH_API (else the socket of this machine's
        switch), `token` from PVSWITCH_TOKEN, `ca`, the file of the certificates to trust, from PVSWITCH_CA.
        `timeout` is how many seconds an answer may take.
        """
        self._transport = Transport(address, token=token, ca=ca, timeout=timeout)

    @property
    def address(self) -> str:
        """Where the switch is."""
        return self._transport.address

    async def __aenter__(self) -> Self:
        """Return the client; it connects at the first call."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()


class Client(Operations, Blocking):
    """The same for programs without an event loop; `with` closes its connections."""

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        ca: Path | str | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        """See `AsyncClient`."""
        super().__init__()
        self._transport = Transport(address, token=token, ca=ca, timeout=timeout)

    @property
    def address(self) -> str:
        """Where the switch is."""
        return self._transport.address

    def __enter__(self) -> Self:
        """Return the client; it connects at the first call."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.stop(self._transport.close)

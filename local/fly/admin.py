"""A client for the emulator's `/_emulator` endpoints: read its logs, set faults."""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

import httpx

from local.fly.logs import Action, Request

__all__ = ["Action", "Admin", "FaultError", "FaultOptions", "FaultState", "Request"]


class FaultError(ValueError):
    """The emulator rejected a fault; the text names the field."""


class FaultOptions(TypedDict, total=False):
    """The options of a fault besides its kind, which `local.fly.faults` explains."""

    action: str
    """Only operations of this name: create, get, list, start, stop, suspend, wait, exec …"""
    app: str
    machine: str
    route: str
    """Only requests to this path template, with or without the method."""
    times: int | None
    """How often it fires. Absent: once, or no limit if `for_ms` is set. None: until cleared."""
    probability: float
    seed: int
    delay_ms: int
    for_ms: int
    status: int
    body: str
    answer: Literal["408", "504", "close"]
    exit_code: int


#: Longest time, in s, for an answer. The emulator answers at once, but the machine may be busy.
ANSWER_SECONDS = 30.0
#: Limits of an httpx client that opens a connection for each request, and keeps none.
FRESH_CONNECTIONS = httpx.Limits(max_keepalive_connections=0)


@dataclass(frozen=True)
class FaultState:
    """A fault that is set, and how often it has fired."""

    id: str
    kind: str
    fired: int
    active: bool


class Admin:
    """`async with Admin(emulator.api_url) as admin`: the control side of an emulator, for tests."""

    def __init__(self, api_url: str) -> None:
        # `trust_env=False`: a developer's HTTP_PROXY must not apply to loopback. `verify=False`:
        # loading the certificate authorities takes 20 ms, and there is no TLS here. No connection
        # is kept: one that the emulator closes, as it is idle or as it dies, would fail the request
        # that is about to use it.
        self._client = httpx.AsyncClient(
            base_url=api_url,
            trust_env=False,
            verify=False,
            limits=FRESH_CONNECTIONS,
            timeout=ANSWER_SECONDS,
        )

    async def __aenter__(self) -> Self:
        """Return the client, ready for use."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def set_fault(self, kind: str, **options: Unpack[FaultOptions]) -> str:
        """Set a fault and return its id. Raises FaultError where the emulator rejects it."""
        plain: dict[str, object] = {**options}
        match = {
            name: plain.pop(name) for name in ("action", "app", "machine", "route") if name in plain
        }
        body = {"kind": kind, "match": match, **plain}
        reply = await self._client.post("/_emulator/faults", json=body)
        if reply.status_code == 400:
            raise FaultError(reply.json()["error"])
        reply.raise_for_status()
        return str(reply.json()["id"])

    async def end_fault(self, fault_id: str) -> None:
        """Delete a fault; the requests that it delays go on at once."""
        (await self._client.delete(f"/_emulator/faults/{fault_id}")).raise_for_status()

    async def clear_faults(self) -> None:
        """Delete all faults; the requests that they delay go on at once."""
        (await self._client.delete("/_emulator/faults")).raise_for_status()

    async def faults(self) -> list[FaultState]:
        """All faults that are set, including those that will not fire again."""
        names = FaultState.__dataclass_fields__
        rows = await self._rows("faults", 0)
        return [FaultState(**{name: row[name] for name in names}) for row in rows]

    async def fired(self, fault_id: str) -> int:
        """How often a fault has fired."""
        return next(fault.fired for fault in await self.faults() if fault.id == fault_id)

    async def actions(self, after: int = 0) -> list[Action]:
        """Committed provider actions with a sequence above `after`, oldest first."""
        return [Action(**row) for row in await self._rows("log", after)]

    async def requests(self, after: int = 0) -> list[Request]:
        """Requests that the API received with a sequence above `after`, oldest first."""
        return [Request(**row) for row in await self._rows("requests", after)]

    # Any, unchecked: the rows are what the emulator's own dataclasses wrote.
    async def _rows(self, name: str, after: int) -> list[dict[str, Any]]:
        reply = await self._client.get(f"/_emulator/{name}", params={"after": after})
        reply.raise_for_status()
        rows: list[dict[str, Any]] = reply.json()
        return rows

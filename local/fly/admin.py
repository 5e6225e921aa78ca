"""A client for the emulator's `/_emulator` endpoints: its logs, and faults on demand."""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

import httpx

from local.fly.log import Action, Request

__all__ = ["Action", "Admin", "FaultError", "FaultOptions", "FaultState", "Request"]


class FaultError(ValueError):
    """The emulator refused a fault; the text names the field."""


class FaultOptions(TypedDict, total=False):
    """What a fault can say beside its kind; `local.fly.faults` tells what each kind reads."""

    action: str
    """Only operations of this name: create, get, list, start, stop, suspend, wait, exec …"""
    app: str
    machine: str
    route: str
    """Only this path template, with or without the method before it."""
    times: int | None
    """How often it fires; absent is once (for ever with `for_ms`), None until cleared."""
    probability: float
    seed: int
    delay_ms: int
    for_ms: int
    status: int
    body: str
    answer: Literal["408", "504", "close"]
    exit_code: int


@dataclass(frozen=True)
class FaultState:
    """A fault that is set, and how often it has fired."""

    id: str
    kind: str
    fired: int
    active: bool


class Admin:
    """`async with Admin(emulator.api_url) as admin`: what tests ask of an emulator."""

    def __init__(self, api_url: str) -> None:
        # Nothing from the environment: a developer's HTTP_PROXY is not for loopback. And no TLS,
        # whose authorities take 20 ms to load.
        self._client = httpx.AsyncClient(base_url=api_url, trust_env=False, verify=False)

    async def __aenter__(self) -> Self:
        """Ready for use."""
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
        """Set a fault and return its id; `FaultError` says what is wrong with it."""
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

    async def clear_faults(self) -> None:
        """Delete all faults."""
        (await self._client.delete("/_emulator/faults")).raise_for_status()

    async def faults(self) -> list[FaultState]:
        """All faults that are set, spent ones too."""
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
        """Requests the API was sent with a sequence above `after`, oldest first."""
        return [Request(**row) for row in await self._rows("requests", after)]

    # What the rows hold is what the emulator's own dataclasses wrote, hence Any and no checking.
    async def _rows(self, name: str, after: int) -> list[dict[str, Any]]:
        reply = await self._client.get(f"/_emulator/{name}", params={"after": after})
        reply.raise_for_status()
        rows: list[dict[str, Any]] = reply.json()
        return rows

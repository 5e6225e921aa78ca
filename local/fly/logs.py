"""The two logs that tests read: committed actions, and received requests."""

import json
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from local.fly.clock import unix_ms
from local.fly.disk import Disk
from local.fly.go_json import JsonObject
from local.fly.records.machine_records import MachineRecord
from local.fly.records.volume_records import VolumeRecord

Source = Literal["user", "proxy", "flyd"]
"""The cause: a caller of the API, traffic through the proxy, or the platform itself."""


@dataclass(frozen=True)
class Action:
    """One committed action. A rejected or failed request is not an action."""

    sequence: int
    time_ms: int
    app: str
    machine: str
    name: str
    action: str
    source: Source
    labels: dict[str, str] = field(default_factory=dict)
    detail: JsonObject = field(default_factory=dict)


class ActionLog:
    """The append-only log of committed actions, in memory and in `actions.jsonl`.

    Sequence numbers begin at 1, have no gaps, and continue after the last one of an earlier run.
    """

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._actions: list[Action] = []
        self._file: IO[str] | None = None

    def open(self) -> None:
        """Read the file of earlier runs; an incomplete last line, left by a crash, is dropped."""
        if self._path.exists():
            whole = [line for line in self._path.read_text().splitlines(True) if line[-1] == "\n"]
            self._actions = [Action(**json.loads(line)) for line in whole]
            self._path.write_text("".join(whole))
        self._file = self._path.open("a")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def machine(
        self, record: MachineRecord, action: str, source: Source, detail: JsonObject | None = None
    ) -> None:
        """Append an action on a machine."""
        self._append(record.app, record.id, record.name, action, source, record.metadata, detail)

    def volume(self, record: VolumeRecord, action: str, source: Source, detail: JsonObject) -> None:
        """Append an action on a volume; `detail` gets the volume's id."""
        detail = {"volume": record.id, **detail}
        self._append(record.app, "", record.name, action, source, {}, detail)

    def app(self, name: str, action: str, source: Source) -> None:
        """Append an action on an app."""
        self._append(name, "", "", action, source, {}, None)

    def after(self, sequence: int) -> list[Action]:
        """The actions after `sequence`, oldest first."""
        return self._actions[max(sequence, 0) :]

    def _append(
        self,
        app: str,
        machine: str,
        name: str,
        action: str,
        source: Source,
        labels: dict[str, str],
        detail: JsonObject | None,
    ) -> None:
        sequence = len(self._actions) + 1
        entry = Action(
            sequence, unix_ms(), app, machine, name, action, source, labels, detail or {}
        )
        self._actions.append(entry)
        line = json.dumps(vars(entry)) + "\n"
        self._disk.enqueue(lambda: self._write(line))

    def _write(self, line: str) -> None:
        assert self._file is not None
        self._file.write(line)
        self._file.flush()


@dataclass
class Request:
    """One HTTP request to the API. `status` is None while in progress, 0 if never answered."""

    sequence: int
    time_ms: int
    method: str
    route: str
    action: str
    app: str
    machine: str
    status: int | None = None


class RequestLog:
    """The last `keep` requests of this run, in order of arrival."""

    def __init__(self, keep: int = 200_000) -> None:
        self._requests: deque[Request] = deque(maxlen=keep)
        self._count = 0

    def open(self, method: str, route: str, action: str, app: str, machine: str) -> Request:
        """Record a request that has arrived; the caller sets `status` when it is answered."""
        self._count += 1
        entry = Request(self._count, unix_ms(), method, route, action, app, machine)
        self._requests.append(entry)
        return entry

    def after(self, sequence: int) -> list[Request]:
        """The requests after `sequence`, oldest first."""
        return [request for request in self._requests if request.sequence > sequence]

"""The verbs of machines: each checks the state, commits, and starts its background job.

No function here awaits, so nothing can happen between a check and its commit. For the same reason
callers find the machine and check its lease in the same step of the event loop as they call this.
"""

import asyncio
import signal
from dataclasses import dataclass

from local.fly import errors, ids
from local.fly.clock import rfc3339_now
from local.fly.config import configs
from local.fly.errors import ApiError
from local.fly.faults import FaultContext, Faults
from local.fly.go_json import JsonObject, mapping, seconds, text
from local.fly.logs import ActionLog, Source
from local.fly.machines.jobs import Jobs
from local.fly.machines.machine import Machine, event
from local.fly.machines.states import ALLOWED, NO_OP, Verb, refusal
from local.fly.machines.volume_claims import VolumeClaims
from local.fly.records.machine_records import MachineRecord, Version
from local.fly.settings import Settings

STOP_TIMEOUT_S = 5.0
STOP_TIMEOUT_MAX_S = 300.0


@dataclass(frozen=True)
class StopRequest:
    """How to end a process: the signal, and the seconds before SIGKILL."""

    signal: int = signal.SIGINT
    timeout_s: float = STOP_TIMEOUT_S


class Lifecycle:
    """The verbs, for the API and for the proxy."""

    def __init__(
        self,
        settings: Settings,
        actions: ActionLog,
        faults: Faults,
        jobs: Jobs,
        claims: VolumeClaims,
    ) -> None:
        self._claims = claims
        self._settings = settings
        self._actions = actions
        self._faults = faults
        self._jobs = jobs

    def launch(self, machine: Machine, *, run: bool, source: Source) -> None:
        """Begin to prepare, and to boot if `run`, a machine that was just created."""
        self._commit(machine, "create", source)
        machine.move("created", event("launch", "created", source))
        machine.begin(self._jobs.prepare(machine, launch=run))

    def start(self, machine: Machine, source: Source) -> str:
        """Resume or boot; return the state before."""
        before = machine.state
        if before == "started" and self._settings.start_on_started == "ok":
            return before
        interrupts = before == "suspending" and self._interrupts_suspend
        refused = None if interrupts else refusal("start", before)
        if refused is not None:
            raise refused
        if asyncio.get_running_loop().time() < machine.active_until:
            raise errors.still_active()
        self._reserve(machine, "start")
        self._drop_snapshot(machine)
        self._commit(machine, "start", source, {"previous_state": before})
        machine.move("starting", event("start", "starting", source))
        machine.begin(self._start_job(machine, before))
        return before

    def stop(self, machine: Machine, request: StopRequest, source: Source) -> None:
        """End the process. A suspended machine loses its memory."""
        if _nothing_to_do("stop", machine):
            return
        suspended = machine.state == "suspended"
        self._commit(machine, "stop", source)
        machine.move("stopping", event("stop", "stopping", source))
        if suspended:
            request = StopRequest(signal.SIGKILL)
        machine.begin(self._jobs.halt(machine, request.signal, request.timeout_s))

    def suspend(self, machine: Machine, source: Source) -> None:
        """Suspend the process, with its memory."""
        if _nothing_to_do("suspend", machine):
            return
        if not configs.suspendable(machine.record.config):
            raise ApiError(
                412, "failed_precondition: machine with swap, schedule or GPU cannot be suspended"
            )
        self._commit(machine, "suspend", source)
        machine.move("suspending", event("suspend", "suspending", source))
        machine.begin(self._jobs.suspend(machine))

    def restart(self, machine: Machine, request: StopRequest, source: Source) -> None:
        """Stop and start in one."""
        _require_allowed("restart", machine)
        self._commit(machine, "restart", source)
        machine.move("restarting", event("restart", "restarting", source))
        machine.begin(self._jobs.restart(machine, request.signal, request.timeout_s))

    def update(self, machine: Machine, config: JsonObject, expected: str, source: Source) -> None:
        """Replace the config and `instance_id`. As on Fly this clears the events."""
        _require_allowed("update", machine)
        record = machine.record
        if expected and expected != record.instance_id:
            raise errors.version_mismatch(expected, record.instance_id)
        self._claims.check_update(record, config)
        self._reserve(machine, "update")
        run = machine.state == "started"
        record.config = config
        record.instance_id = ids.ulid()
        record.versions.append(Version(record.instance_id, config))
        record.events = []
        self._commit(machine, "update", source)
        machine.move("replacing", event("update", "replacing", source))
        machine.begin(self._jobs.replace(machine, run=run))

    def destroy(self, machine: Machine, *, force: bool, source: Source) -> None:
        """Destroy a machine that does not run, or with `force` any machine."""
        if machine.state == "destroying" and force:
            return
        if not force or machine.state == "destroyed":
            _require_allowed("destroy", machine)
        self._commit(machine, "destroy", source)
        machine.set_lease(None)
        machine.move("destroying", event("destroy", "destroying", source))
        machine.begin(self._jobs.destroy(machine))

    def set_cordon(self, machine: Machine, cordoned: bool, source: Source) -> None:
        """Remove the machine from the proxy's candidates, or add it again."""
        if machine.record.cordoned == cordoned:
            return
        machine.record.cordoned = cordoned
        self._commit(machine, "cordon" if cordoned else "uncordon", source)
        machine.touch()

    @property
    def _interrupts_suspend(self) -> bool:
        return self._settings.start_while_suspending == "interrupt"

    def _reserve(self, machine: Machine, action: str) -> None:
        if self._faults.fire("capacity", FaultContext(action, machine.record.app, machine.id)):
            raise errors.host_full()

    def _drop_snapshot(self, machine: Machine) -> None:
        if machine.state != "suspended" or machine.guest is None:
            return
        context = FaultContext("start", machine.record.app, machine.id)
        if self._faults.fire("snapshot_dropped", context):
            machine.guest.kill()

    async def _start_job(self, machine: Machine, before: str) -> None:
        if before in ("suspended", "suspending"):
            await self._jobs.resume(machine)
            return
        keep = machine.record.rootfs_persist != "never"
        await self._jobs.boot(machine, keep_rootfs=keep)

    def _commit(
        self, machine: Machine, action: str, source: Source, detail: JsonObject | None = None
    ) -> None:
        self._actions.machine(machine.record, action, source, detail)


def stop_request(record: MachineRecord, signal_name: object, timeout: object) -> StopRequest:
    """How to end this machine: from the request, else its config, else Fly's defaults.

    A timeout of zero counts as absent, because fly-go always sends `"0s"`.
    """
    config = mapping(record.config, "stop_config") or {}
    number = signal_number(signal_name or text(config, "signal") or "SIGINT")
    wanted = seconds(timeout, "timeout") or seconds(config.get("timeout"), "timeout")
    return StopRequest(number, min(wanted or STOP_TIMEOUT_S, STOP_TIMEOUT_MAX_S))


def signal_number(given: object) -> int:
    """A signal by name (`SIGTERM`) or by number (fly-go's kill sends 9)."""
    try:
        if isinstance(given, str):
            return signal.Signals[given.upper()]
        if isinstance(given, int):
            return signal.Signals(given)
    except (KeyError, ValueError):
        pass
    raise ApiError(400, f"invalid_argument: unknown signal {given}")


def new_record(
    app: str, machine_id: str, name: str, region: str, config: JsonObject
) -> MachineRecord:
    """A machine's first record, in state `created`."""
    version = Version(ids.ulid(), config)
    now = rfc3339_now()
    return MachineRecord(
        id=machine_id,
        app=app,
        name=name,
        region=region,
        state="created",
        instance_id=version.id,
        config=config,
        created_at=now,
        updated_at=now,
        private_ip=ids.private_ip(),
        versions=[version],
    )


def _nothing_to_do(verb: Verb, machine: Machine) -> bool:
    _require_allowed(verb, machine)
    return machine.state in NO_OP.get(verb, ()) and machine.state not in ALLOWED[verb]


def _require_allowed(verb: Verb, machine: Machine) -> None:
    refused = refusal(verb, machine.state)
    if refused is not None:
        raise refused

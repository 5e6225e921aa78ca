"""The verbs: each checks the state, commits, and leaves the rest to its job.

Nothing here awaits, so a check and its commit cannot be torn apart. Whoever calls has found the
machine and checked its lease in the same step of the event loop.
"""

import asyncio
import signal
from dataclasses import dataclass

from local.fly import configs, errors, ids
from local.fly.claims import Claims
from local.fly.clock import rfc3339_now
from local.fly.errors import ApiError
from local.fly.faults import Faults, Occasion
from local.fly.jobs import Jobs
from local.fly.log import ActionLog, Source
from local.fly.machines import Machine, event
from local.fly.records import MachineRecord, Version
from local.fly.settings import Settings
from local.fly.states import ALREADY, TAKEN, Verb, refusal
from local.fly.wire import JsonObject, mapping, seconds, text

STOP_TIMEOUT_S = 5.0
STOP_TIMEOUT_MAX_S = 300.0


@dataclass(frozen=True)
class StopOrder:
    """How a process is asked to end: the signal, and how long it may take."""

    signal: int = signal.SIGINT
    timeout_s: float = STOP_TIMEOUT_S


class Lifecycle:
    """What can be done to a machine, by a caller or by the proxy."""

    def __init__(
        self,
        settings: Settings,
        actions: ActionLog,
        faults: Faults,
        jobs: Jobs,
        claims: Claims,
    ) -> None:
        self._claims = claims
        self._settings = settings
        self._actions = actions
        self._faults = faults
        self._jobs = jobs

    def launch(self, machine: Machine, *, run: bool, source: Source) -> None:
        """Bring a machine that was just recorded to life."""
        self._commit(machine, "create", source)
        machine.move("created", event("launch", "created", source))
        machine.begin(self._jobs.prepare(machine, launch=run))

    def start(self, machine: Machine, source: Source) -> str:
        """Resume or boot; the state before."""
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

    def stop(self, machine: Machine, order: StopOrder, source: Source) -> None:
        """End the process; a suspended machine loses its snapshot."""
        if _nothing_to_do("stop", machine):
            return
        frozen = machine.state == "suspended"
        self._commit(machine, "stop", source)
        machine.move("stopping", event("stop", "stopping", source))
        if frozen:
            order = StopOrder(signal.SIGKILL)
        machine.begin(self._jobs.halt(machine, order.signal, order.timeout_s))

    def suspend(self, machine: Machine, source: Source) -> None:
        """Snapshot and freeze."""
        if _nothing_to_do("suspend", machine):
            return
        if not configs.suspendable(machine.record.config):
            raise ApiError(
                412, "failed_precondition: machine with swap, schedule or GPU cannot be suspended"
            )
        self._commit(machine, "suspend", source)
        machine.move("suspending", event("suspend", "suspending", source))
        machine.begin(self._jobs.suspend(machine))

    def restart(self, machine: Machine, order: StopOrder, source: Source) -> None:
        """Stop and start in one."""
        _must_take("restart", machine)
        self._commit(machine, "restart", source)
        machine.move("restarting", event("restart", "restarting", source))
        machine.begin(self._jobs.restart(machine, order.signal, order.timeout_s))

    def update(self, machine: Machine, config: JsonObject, expected: str, source: Source) -> None:
        """Give the machine another config and `instance_id`; resets its events, as on Fly."""
        _must_take("update", machine)
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
        """Destroy a resting machine, or by force any."""
        if machine.state == "destroying" and force:
            return
        if not force or machine.state == "destroyed":
            _must_take("destroy", machine)
        self._commit(machine, "destroy", source)
        machine.set_lease(None)
        machine.move("destroying", event("destroy", "destroying", source))
        machine.begin(self._jobs.destroy(machine))

    def set_cordon(self, machine: Machine, cordoned: bool, source: Source) -> None:
        """Take the machine from the proxy's candidates, or give it back."""
        if machine.record.cordoned == cordoned:
            return
        machine.record.cordoned = cordoned
        self._commit(machine, "cordon" if cordoned else "uncordon", source)
        machine.touch()

    @property
    def _interrupts_suspend(self) -> bool:
        return self._settings.start_while_suspending == "interrupt"

    def _reserve(self, machine: Machine, action: str) -> None:
        if self._faults.fire("capacity", Occasion(action, machine.record.app, machine.id)):
            raise errors.host_full()

    def _drop_snapshot(self, machine: Machine) -> None:
        if machine.state != "suspended" or machine.guest is None:
            return
        occasion = Occasion("start", machine.record.app, machine.id)
        if self._faults.fire("snapshot_dropped", occasion):
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


def stop_order(record: MachineRecord, signal_name: object, timeout: object) -> StopOrder:
    """How to end this machine: the request, else its config, else Fly's defaults.

    A timeout of zero counts as not given: fly-go always sends `"0s"`.
    """
    config = mapping(record.config, "stop_config") or {}
    number = signal_number(signal_name or text(config, "signal") or "SIGINT")
    wanted = seconds(timeout, "timeout") or seconds(config.get("timeout"), "timeout")
    return StopOrder(number, min(wanted or STOP_TIMEOUT_S, STOP_TIMEOUT_MAX_S))


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
    _must_take(verb, machine)
    return machine.state in ALREADY.get(verb, ()) and machine.state not in TAKEN[verb]


def _must_take(verb: Verb, machine: Machine) -> None:
    refused = refusal(verb, machine.state)
    if refused is not None:
        raise refused

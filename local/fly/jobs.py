"""The background half of each verb: what Fly does after it has answered."""

import asyncio
import signal
import uuid

from local.fly import ports
from local.fly.checking import Checking
from local.fly.claims import Claims
from local.fly.clock import rfc3339_now
from local.fly.disk import Disk
from local.fly.faults import Faults, Occasion
from local.fly.guests import Guest, clear, lay_out
from local.fly.images import UnknownImage
from local.fly.log import ActionLog
from local.fly.machines import Machine, event
from local.fly.mounts import Mount
from local.fly.processes import Spawner
from local.fly.settings import Settings
from local.fly.wire import JsonObject, flag, mapping, number, text

RESTART_WINDOW_S = 300
"""The time within which `max_retries` counts (Fly docs: restart policy)."""


class Jobs:
    """Moves machines from a transient state to the resting one it leads to."""

    def __init__(
        self,
        settings: Settings,
        actions: ActionLog,
        faults: Faults,
        disk: Disk,
        spawner: Spawner,
        claims: Claims,
        checking: Checking,
    ) -> None:
        self._claims = claims
        self._checking = checking
        self._spawner = spawner
        self._disk = disk
        self._settings = settings
        self._actions = actions
        self._faults = faults
        self._ports: dict[int, Guest] = {}

    async def prepare(self, machine: Machine, *, launch: bool) -> None:
        """Fetch a new machine's image; then boot it, or rest as `stopped`."""
        await _pause(self._settings.create_ms)
        if not launch:
            machine.move("stopped")
            return
        machine.move("starting", event("start", "starting", "flyd"))
        await self.boot(machine, keep_rootfs=False)

    async def boot(self, machine: Machine, *, keep_rootfs: bool) -> None:
        """Cold boot: a new process, a new boot id, an empty root file system unless it is kept."""
        await _pause(self._settings.start_ms)
        boot_id = str(uuid.uuid4())
        mount = await self._claims.mount(machine.record)
        await self._disk.run(
            lambda: lay_out(machine.folder, boot_id, keep_rootfs=keep_rootfs, mount=mount)
        )
        try:
            guest = self._spawn(machine, boot_id, mount)
        except UnknownImage:
            await self._unbootable(machine)
            return
        machine.guest = guest
        self._started(machine, {"boot": "cold", "boot_id": guest.boot_id})
        machine.watch(self._watch(machine, guest))
        self._checking.begin(machine, guest)

    async def resume(self, machine: Machine) -> None:
        """Go on where suspend left off; without the snapshot, a cold boot with the files kept."""
        await _pause(self._settings.resume_ms)
        guest = machine.guest
        if guest is None or guest.stop_requested:
            await self._end(machine, signal.SIGKILL, 0)
            await self.boot(machine, keep_rootfs=True)
            return
        guest.thaw()
        self._started(machine, {"boot": "resumed", "boot_id": guest.boot_id})

    async def halt(self, machine: Machine, signal_number: int, timeout_s: float) -> None:
        """End the process and rest as `stopped`."""
        code = await self._end(machine, signal_number, timeout_s)
        if _destroys_itself(machine):
            await self._destroy_itself(machine, code)
            return
        self._stopped(machine, code, {"requested_stop": True})

    async def suspend(self, machine: Machine) -> None:
        """Freeze the process and rest as `suspended`."""
        await _pause(self._settings.suspend_ms)
        occasion = Occasion("suspend", machine.record.app, machine.id)
        if self._faults.fire("suspend_fails", occasion):
            self._actions.machine(machine.record, "suspend_failed", "flyd")
            machine.move("started", event("suspend", "failed", "flyd"))
        elif self._faults.fire("suspend_stops", occasion):
            code = await self._end(machine, signal.SIGKILL, 0)
            self._stopped(machine, code, {"requested_stop": True})
        else:
            if machine.guest is not None:
                machine.guest.freeze()
            self._actions.machine(machine.record, "suspended", "flyd")
            machine.move("suspended", event("suspend", "suspended", "flyd"))

    async def restart(self, machine: Machine, signal_number: int, timeout_s: float) -> None:
        """End the process and boot again."""
        await self._end(machine, signal_number, timeout_s)
        machine.move("starting", event("start", "starting", "flyd"))
        await self.boot(machine, keep_rootfs=machine.record.rootfs_persist != "never")

    async def replace(self, machine: Machine, *, run: bool) -> None:
        """Put an update into force; a machine that ran is booted again, others rest stopped."""
        if machine.guest is not None:
            # One that did not run is frozen, and could not answer a signal.
            code = await self._end(machine, signal.SIGINT if run else signal.SIGKILL, 5)
            machine.move("replacing", event("exit", "stopped", "flyd", _exit(code, {})))
        await _pause(self._settings.replace_ms)
        self._claims.settle(machine.record)
        if run:
            machine.move("starting", event("start", "starting", "flyd"))
            await self.boot(machine, keep_rootfs=machine.record.rootfs_persist == "always")
            return
        if machine.record.rootfs_persist != "always":
            await self._disk.run(lambda: clear(machine.folder))
        machine.move("stopped", event("update", "stopped", "flyd"))

    async def destroy(self, machine: Machine) -> None:
        """End the process, drop the files, and be `destroyed`."""
        if machine.guest is not None:
            await machine.guest.end()
            machine.guest = None
        await _pause(self._settings.destroy_ms)
        await self._disk.run(lambda: clear(machine.folder))
        self._claims.release_later(machine.id)
        self._actions.machine(machine.record, "destroyed", "flyd")
        machine.move("destroyed", event("destroy", "destroyed", "flyd"))

    def _spawn(self, machine: Machine, boot_id: str, mount: Mount | None) -> Guest:
        self._release_ports()
        port = ports.reserve()
        try:
            guest = Guest.boot(
                machine.record,
                machine.folder,
                boot_id,
                port,
                self._settings.images,
                self._spawner,
                mount,
            )
        except BaseException:
            ports.release(port)
            raise
        self._ports[port] = guest
        return guest

    def _release_ports(self) -> None:
        """Give back the ports of guests that are gone."""
        for port in [port for port, guest in self._ports.items() if not guest.main.running]:
            del self._ports[port]
            ports.release(port)

    def _started(self, machine: Machine, detail: JsonObject) -> None:
        self._actions.machine(machine.record, "started", "flyd", detail)
        machine.move("started", event("start", "started", "flyd"))

    def _stopped(self, machine: Machine, code: int, facts: JsonObject) -> None:
        loop_time = asyncio.get_running_loop().time()
        machine.active_until = loop_time + self._settings.still_active_ms / 1000
        self._actions.machine(machine.record, "stopped", "flyd", {"exit_code": code})
        machine.move("stopped", event("exit", "stopped", "flyd", _exit(code, facts)))

    async def _end(self, machine: Machine, signal_number: int, timeout_s: float) -> int:
        """End the guest; it stays the machine's until it is gone, for `close` to find."""
        guest = machine.guest
        code = 0 if guest is None else await guest.stop(signal_number, timeout_s)
        machine.guest = None
        return code

    async def _unbootable(self, machine: Machine) -> None:
        if self._settings.unknown_image == "destroyed":
            machine.move("launch_failed", event("launch", "launch_failed", "flyd"))
            await self.destroy(machine)
            return
        self._actions.machine(machine.record, "failed", "flyd")
        machine.move("failed", event("start", "failed", "flyd"))

    async def _watch(self, machine: Machine, guest: Guest) -> None:
        """Wait for the end of a boot, and act on it when nobody asked for it."""
        code = await guest.main.wait()
        if guest.stop_requested or machine.guest is not guest:
            return
        if machine.state == "suspended":
            # Memory is lost and nobody notices before the next start, as on Fly.
            machine.guest = None
            return
        machine.guest = None
        machine.begin(self._exited(machine, code))

    async def _exited(self, machine: Machine, code: int) -> None:
        """The main process ended by itself: the restart policy decides."""
        self._actions.machine(machine.record, "exited", "flyd", {"exit_code": code})
        if not self._restarts(machine, code):
            if _destroys_itself(machine):
                await self._destroy_itself(machine, code)
            else:
                self._stopped(machine, code, {"requested_stop": False})
            return
        facts: JsonObject = {"restarting": True}
        request = _exit(code, facts) | {"restart_count": len(machine.crashes)}
        machine.move("starting", event("exit", "stopped", "flyd", request))
        await _pause(self._settings.restart_delay_ms)
        await self.boot(machine, keep_rootfs=machine.record.rootfs_persist != "never")

    async def _destroy_itself(self, machine: Machine, code: int) -> None:
        machine.move("destroying", event("exit", "stopped", "flyd", _exit(code, {})))
        await self.destroy(machine)

    def _restarts(self, machine: Machine, code: int) -> bool:
        """Whether the policy starts it again; counts the crash if so."""
        restart = mapping(machine.record.config, "restart") or {}
        policy = text(restart, "policy") or "on-failure"
        if policy == "no" or (policy == "on-failure" and code == 0):
            return False
        now = asyncio.get_running_loop().time()
        machine.crashes = [at for at in machine.crashes if now - at < RESTART_WINDOW_S]
        retries = number(restart, "max_retries")
        limit = 10 if retries is None else retries
        if policy == "on-failure" and len(machine.crashes) >= limit:
            return False
        machine.crashes.append(now)
        return True


def _destroys_itself(machine: Machine) -> bool:
    return bool(flag(machine.record.config, "auto_destroy"))


def _exit(code: int, facts: JsonObject) -> JsonObject:
    """An exit event's `request`; zero values are left out, as Go does."""
    exit_event: JsonObject = {
        "exit_code": code if code >= 0 else 128 - code,
        "guest_exit_code": max(code, 0),
        "guest_signal": max(-code, 0),
        "signal": max(-code, 0),
        **facts,
    }
    shown: JsonObject = {name: value for name, value in exit_event.items() if value}
    return {"exit_event": shown | {"exited_at": rfc3339_now()}}


async def _pause(milliseconds: int) -> None:
    if milliseconds:
        await asyncio.sleep(milliseconds / 1000)

"""The background half of each verb, which runs after the API has answered."""

import asyncio
import signal
import uuid

from local.fly.clock import rfc3339_now
from local.fly.config.images import UnknownImage
from local.fly.config.mounts import Mount
from local.fly.disk import Disk
from local.fly.faults import FaultContext, Faults
from local.fly.go_json import JsonObject, flag, mapping, number, text
from local.fly.guests.guest import Guest, clear, prepare_rootfs
from local.fly.guests.guest_processes import ServerEnded, Spawner
from local.fly.logs import ActionLog
from local.fly.machines.health_checks import HealthChecks
from local.fly.machines.machine import Machine, event
from local.fly.machines.volume_claims import VolumeClaims
from local.fly.settings import Settings
from local.ports import free_port, release_port

RESTART_WINDOW_S = 300
"""The period over which `max_retries` counts crashes (Fly docs: restart policy)."""


class Jobs:
    """Moves machines from a transient state to the final one that follows."""

    def __init__(
        self,
        settings: Settings,
        actions: ActionLog,
        faults: Faults,
        disk: Disk,
        spawner: Spawner,
        claims: VolumeClaims,
        health_checks: HealthChecks,
    ) -> None:
        self._claims = claims
        self._health_checks = health_checks
        self._spawner = spawner
        self._disk = disk
        self._settings = settings
        self._actions = actions
        self._faults = faults
        self._ports: dict[int, Guest] = {}

    async def prepare(self, machine: Machine, *, launch: bool) -> None:
        """Prepare a new machine; then boot it, or leave it `stopped`."""
        await _pause(self._settings.create_ms)
        if not launch:
            machine.move("stopped")
            return
        machine.move("starting", event("start", "starting", "flyd"))
        await self.boot(machine, keep_rootfs=False)

    async def boot(self, machine: Machine, *, keep_rootfs: bool) -> None:
        """Cold boot: new process, new boot id, empty root file system unless it is kept."""
        await _pause(self._settings.start_ms)
        boot_id = str(uuid.uuid4())
        mount = await self._claims.mount(machine.record)
        await self._disk.run(
            lambda: prepare_rootfs(machine.folder, boot_id, keep_rootfs=keep_rootfs, mount=mount)
        )
        try:
            guest = self._spawn(machine, boot_id, mount)
        except (UnknownImage, OSError, ServerEnded):
            await self._unbootable(machine)
            return
        machine.guest = guest
        self._started(machine, {"boot": "cold", "boot_id": guest.boot_id})
        machine.watch(self._watch(machine, guest))
        self._health_checks.begin(machine, guest)

    async def resume(self, machine: Machine) -> None:
        """Resume a suspended guest. If it is lost: a cold boot with its files kept."""
        await _pause(self._settings.resume_ms)
        guest = machine.guest
        if guest is None or guest.stop_requested:
            await self._end(machine, signal.SIGKILL, 0)
            await self.boot(machine, keep_rootfs=True)
            return
        guest.resume()
        self._started(machine, {"boot": "resumed", "boot_id": guest.boot_id})

    async def halt(self, machine: Machine, signal_number: int, timeout_s: float) -> None:
        """End the process; the machine is `stopped`, or destroyed if it has `auto_destroy`."""
        code = await self._end(machine, signal_number, timeout_s)
        if _destroys_itself(machine):
            await self._destroy_itself(machine, code)
            return
        self._stopped(machine, code, {"requested_stop": True})

    async def suspend(self, machine: Machine) -> None:
        """Suspend the process; the machine is `suspended`."""
        await _pause(self._settings.suspend_ms)
        context = FaultContext("suspend", machine.record.app, machine.id)
        if self._faults.fire("suspend_fails", context):
            self._actions.machine(machine.record, "suspend_failed", "flyd")
            machine.move("started", event("suspend", "failed", "flyd"))
        elif self._faults.fire("suspend_stops", context):
            code = await self._end(machine, signal.SIGKILL, 0)
            self._stopped(machine, code, {"requested_stop": True})
        else:
            if machine.guest is not None:
                machine.guest.suspend()
            self._actions.machine(machine.record, "suspended", "flyd")
            machine.move("suspended", event("suspend", "suspended", "flyd"))

    async def restart(self, machine: Machine, signal_number: int, timeout_s: float) -> None:
        """End the process and boot again."""
        await self._end(machine, signal_number, timeout_s)
        machine.move("starting", event("start", "starting", "flyd"))
        await self.boot(machine, keep_rootfs=machine.record.rootfs_persist != "never")

    async def replace(self, machine: Machine, *, run: bool) -> None:
        """Apply an update. A machine that ran is booted again; another one stays `stopped`."""
        if machine.guest is not None:
            # A guest that is here but not running is suspended, and handles no signal but SIGKILL.
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
        """End the process and remove the files; the machine is `destroyed`."""
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
        port = free_port()
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
            release_port(port)
            raise
        self._ports[port] = guest
        return guest

    def _release_ports(self) -> None:
        """Release the ports of guests that have ended."""
        for port in [port for port, guest in self._ports.items() if not guest.main.running]:
            del self._ports[port]
            release_port(port)

    def _started(self, machine: Machine, detail: JsonObject) -> None:
        self._actions.machine(machine.record, "started", "flyd", detail)
        machine.move("started", event("start", "started", "flyd"))

    def _stopped(self, machine: Machine, code: int, facts: JsonObject) -> None:
        loop_time = asyncio.get_running_loop().time()
        machine.active_until = loop_time + self._settings.still_active_ms / 1000
        self._actions.machine(machine.record, "stopped", "flyd", {"exit_code": code})
        machine.move("stopped", event("exit", "stopped", "flyd", _exit(code, facts)))

    async def _end(self, machine: Machine, signal_number: int, timeout_s: float) -> int:
        """End the guest. It stays `machine.guest` until it has ended, so that `close` finds it."""
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
        """Wait for the end of a boot, and handle it when it was not requested."""
        code = await guest.main.wait()
        if guest.stop_requested or machine.guest is not guest:
            return
        if machine.state == "suspended":
            # The memory is lost; as on Fly, that shows only at the next start.
            machine.guest = None
            return
        machine.guest = None
        machine.begin(self._exited(machine, code))

    async def _exited(self, machine: Machine, code: int) -> None:
        """Handle a main process that ended by itself, by the restart policy."""
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
        """Whether the policy restarts the machine; if so, count the crash."""
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
    """The `request` of an exit event. Zero values are left out, as Go's encoder does."""
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

"""Routing: choose the machine for a request, and start it if it does not run."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace

from starlette.requests import Request

from local.fly.config import configs
from local.fly.errors import ApiError
from local.fly.guests.guest import Guest
from local.fly.machines import leases
from local.fly.machines.machine import Machine
from local.fly.wiring import Backend

FORCE_HEADER = "fly-force-instance-id"
PREFER_HEADER = "fly-prefer-instance-id"
APP_HEADER = "fly-app-name"
"""The app, for requests whose Host does not name it. Only the emulator has this header: it is for
clients without wildcard DNS."""

MACHINE_PATH = "/_machine/"
"""Begins the path of an address that names a machine: `/_machine/<machine>/<path>`. Only the
emulator has it: it is for clients that do not resolve `*.localhost`."""

_TRANSIENT = frozenset({"created", "starting", "restarting", "replacing", "stopping", "suspending"})


class NoRoute(Exception):
    """No machine can take the request; `status` and `text` are the response."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True)
class Target:
    """The addressee of a request: an app, a machine of an app, or just a machine."""

    app: str
    machine_id: str
    preferred: str = ""
    """The machine to use if possible; otherwise another one of the app."""
    path: str = "/"
    """The path that the guest is asked for, as it came."""

    @classmethod
    def of(cls, request: Request) -> "Target":
        """Read `<machine>.<app>.localhost`, `<app>.localhost`, the headers, and the path if the
        host is another one.
        """
        headers, path = request.headers, request.scope["raw_path"].decode("latin-1")
        host = headers.get("host", "").partition(":")[0].lower()
        labels = host.removesuffix(".localhost").split(".") if host.endswith(".localhost") else []
        app = labels[-1] if labels else headers.get(APP_HEADER, "")
        named = labels[0] if len(labels) == 2 else ""
        if not labels and path.startswith(MACHINE_PATH):
            named, slash, rest = path.removeprefix(MACHINE_PATH).partition("/")
            path = slash + rest or "/"
        machine_id = headers.get(FORCE_HEADER, named)
        return cls(app, machine_id, headers.get(PREFER_HEADER, ""), path)

    def replayed(self, directive: str, app: str) -> "Target":
        """The target of a guest's `fly-replay` header; `app` is the guest's own app."""
        given = dict(part.strip().partition("=")[::2] for part in directive.split(";"))
        return replace(
            self,
            app=given.get("app", app),
            machine_id=given.get("instance", ""),
            preferred=given.get("prefer_instance", ""),
        )


class Routing:
    """Finds machines for requests. A machine named by the request has no fallback."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def pick(self, target: Target) -> Machine:
        """The machine for the request. Raises NoRoute."""
        if target.machine_id:
            machine = self._backend.fleet.find(target.machine_id)
            if machine is None or target.app not in ("", machine.record.app):
                raise NoRoute(404, f"no machine {target.machine_id}")
            return _routable(machine)
        preferred = self._backend.fleet.find(target.preferred) if target.preferred else None
        if preferred is not None and _can_stand_in(preferred, target.app):
            return preferred
        if not target.app:
            raise NoRoute(404, "name an app in Host or a machine in fly-force-instance-id")
        return self._pick_of_app(target.app)

    async def running(self, machine: Machine) -> Guest:
        """The machine's guest, once it accepts connections. Starts the machine if autostart allows.

        Raises NoRoute.
        """
        deadline = time.monotonic() + self._backend.settings.ready_ms / 1000
        while machine.state != "started" or machine.guest is None:
            _routable(machine)
            if machine.state in ("stopped", "suspended"):
                self._start(machine)
            elif machine.state not in _TRANSIENT:
                raise NoRoute(503, f"[PM08] machine is in a non-startable state: {machine.state}")
            try:
                await machine.change(deadline - time.monotonic())
            except TimeoutError:
                raise NoRoute(503, "[PM07] failed to change machine state in time") from None
        await self._accepting(machine.guest)
        return machine.guest

    def _pick_of_app(self, app: str) -> Machine:
        """A started machine, else one that is starting or can be started."""
        try:
            machines = self._backend.fleet.visible_machines(app)
        except ApiError as error:
            raise NoRoute(404, error.text) from error
        candidates = [machine for machine in machines if _is_candidate(machine)]
        for states in ({"started"}, _TRANSIENT, {"suspended", "stopped"}):
            for machine in candidates:
                if machine.state in states:
                    return machine
        raise NoRoute(503, "[PR03] could not find a good candidate within 1 attempts")

    def _start(self, machine: Machine) -> None:
        settings = self._backend.settings
        if not configs.autostart(machine.record.config, settings.autostart_default):
            raise NoRoute(503, "[PM08] machine is stopped and has no autostart")
        try:
            leases.check(machine, "", settings)
            self._backend.lifecycle.start(machine, "proxy")
        except ApiError as error:
            raise NoRoute(503, f"[PM01] machines API returned an error: {error.text}") from error

    async def _accepting(self, guest: Guest) -> None:
        """Wait until the guest accepts a connection: `started` does not mean ready."""
        deadline = time.monotonic() + self._backend.settings.ready_ms / 1000
        while not guest.accepting:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", guest.port)
            except OSError:
                if time.monotonic() > deadline or not guest.main.running:
                    raise NoRoute(503, "[PC01] instance refused connection") from None
                await asyncio.sleep(0.01)
                continue
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            guest.accepting = True


def _can_stand_in(machine: Machine, app: str) -> bool:
    """Whether a preferred machine can take a request for this app."""
    return app in ("", machine.record.app) and _is_candidate(machine) and machine.state != "failed"


def _is_candidate(machine: Machine) -> bool:
    return not machine.record.cordoned and machine.record.live and not machine.gone


def _routable(machine: Machine) -> Machine:
    if machine.record.cordoned:
        raise NoRoute(503, "[PR03] machine is cordoned")
    if machine.gone:
        raise NoRoute(404, f"no machine {machine.id}")
    return machine

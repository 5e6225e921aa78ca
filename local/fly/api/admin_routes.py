"""`/_emulator`: logs and faults for tests, which Fly does not have. No token, no rate limits."""

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from local.fly.errors import ApiError
from local.fly.faults import Fault, InvalidFault
from local.fly.go_json import parse_object
from local.fly.wiring import Backend


class Control:
    """The handlers of `/_emulator`. `actions` are the names that a fault may match."""

    def __init__(self, backend: Backend, actions: frozenset[str]) -> None:
        self._backend = backend
        self._actions = actions

    def routes(self) -> list[Route]:
        """The routes of the handlers."""
        return [
            Route("/_emulator/log", self.log),
            Route("/_emulator/requests", self.requests),
            Route("/_emulator/faults", self.set_fault, methods=["POST"]),
            Route("/_emulator/faults", self.list_faults, methods=["GET"]),
            Route("/_emulator/faults", self.clear_faults, methods=["DELETE"]),
            Route("/_emulator/faults/{id}", self.delete_fault, methods=["DELETE"]),
        ]

    async def log(self, request: Request) -> Response:
        """Committed actions with a sequence above `after`, oldest first."""
        actions = self._backend.actions.after(_after(request))
        return JSONResponse([asdict(action) for action in actions])

    async def requests(self, request: Request) -> Response:
        """Requests to the API with a sequence above `after`, oldest first."""
        return JSONResponse([asdict(one) for one in self._backend.requests.after(_after(request))])

    async def set_fault(self, request: Request) -> Response:
        """Set a fault; a 400 names the invalid field."""
        fields = parse_object(await request.body(), "fault")
        self._check_action(fields.get("match"))
        fault = self._backend.faults.add(fields)
        await self._fire_at_once(fault)
        return JSONResponse(self._shown(fault), 201)

    async def list_faults(self, request: Request) -> Response:
        """List all faults, with how often each has fired."""
        return JSONResponse(self._backend.faults.to_json())

    async def clear_faults(self, request: Request) -> Response:
        """Delete all faults."""
        self._backend.faults.clear()
        return Response(status_code=204)

    async def delete_fault(self, request: Request) -> Response:
        """Delete one fault; the requests that it delays go on at once."""
        found = self._backend.faults.remove(request.path_params["id"])
        return Response(status_code=204 if found else 404)

    def _check_action(self, match: object) -> None:
        action = match.get("action", "") if isinstance(match, dict) else ""
        if isinstance(action, str) and action not in self._actions | {""}:
            known = ", ".join(sorted(self._actions))
            raise InvalidFault("match.action", f"no such action; there are {known}")

    async def _fire_at_once(self, fault: Fault) -> None:
        """A `machine_vanished` that names a machine and no action fires now, without a request."""
        machine = self._backend.fleet.find(fault.match.machine)
        if fault.kind == "machine_vanished" and machine is not None and not fault.match.action:
            fault.fired += 1
            await self._backend.fleet.vanish(machine)

    def _shown(self, fault: Fault) -> object:
        return next(shown for shown in self._backend.faults.to_json() if shown["id"] == fault.id)


def _after(request: Request) -> int:
    try:
        return int(request.query_params.get("after", 0))
    except ValueError:
        raise ApiError(400, "after: must be a whole number") from None

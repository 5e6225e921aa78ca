"""What every call of the API passes: log, faults, token, limits, lease, handler."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from local.fly import errors, leases
from local.fly.auth import authenticate
from local.fly.calls import Call, Operation, Reply
from local.fly.errors import ApiError, ConnectionDropped
from local.fly.faults import Fault, Occasion
from local.fly.world import World


class Endpoint:
    """An operation as an ASGI application.

    A call that came whole runs to its end, whether its client still waits or not: a provider does
    not undo work because a connection closed.
    """

    def __init__(self, world: World, operation: Operation) -> None:
        self._world = world
        self._operation = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        operation, path = self._operation, request.path_params
        entry = self._world.requests.open(
            operation.method,
            operation.path,
            operation.action,
            path.get("app", ""),
            path.get("machine", ""),
        )
        entry.status = 0
        try:
            body = await request.body()
            entry.status = None
            call = Call(path, request.query_params, request.headers, body, token="")
            reply = await self._answer(call)
        except ApiError as error:
            reply = Reply(error.http_status, error.body())
        except _Injected as injected:
            reply = injected.reply
        except (ConnectionDropped, ClientDisconnect):
            entry.status = 0
            await _drop(scope, receive)
            return
        entry.status = reply.status
        await _render(reply)(scope, receive, send)

    async def _answer(self, call: Call) -> Reply:
        occasion = Occasion(
            self._operation.action, call.app, call.machine_id, self._operation.route
        )
        fire = self._firing(occasion)
        _refuse(fire("unavailable"))
        world, operation = self._world, self._operation
        call = replace(
            call, token=authenticate(call.headers.get("authorization", ""), world.settings.token)
        )
        self._limit(call, fire)
        await _hold(fire("slow_before"))
        _refuse(fire("server_error"))
        await self._vanish(call, fire)
        if operation.leased:
            leases.check(call.machine(world), call.nonce, world.settings)
        reply = await operation.handler(world, call)
        await world.disk.settled()
        _lose(fire("answer_lost"))
        await _hold(fire("slow_after"))
        return reply

    def _firing(self, occasion: Occasion) -> Callable[[str], Fault | None]:
        return lambda kind: self._world.faults.fire(kind, occasion)

    def _limit(self, call: Call, fire: Callable[[str], Fault | None]) -> None:
        rate = self._operation.rate
        limited = (
            self._world.settings.limits
            and rate is not None
            and not self._world.limits.admits(self._operation.action, call.subject, rate)
        )
        if limited or fire("rate_limited"):
            raise errors.rate_limited()

    async def _vanish(self, call: Call, fire: Callable[[str], Fault | None]) -> None:
        machine = self._world.fleet.find(call.machine_id) if call.machine_id else None
        if machine is not None and fire("machine_vanished"):
            await self._world.fleet.vanish(machine)


class _Injected(Exception):
    """What a fault answers in place of the operation."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply


def _refuse(fault: Fault | None) -> None:
    """Answer with the fault, before anything is committed."""
    if fault is None:
        return
    if fault.answer == "close":
        raise ConnectionDropped
    if fault.body is not None:
        raise _Injected(Reply(fault.status, text=fault.body))
    raise ApiError(fault.status, "service unavailable")


def _lose(fault: Fault | None) -> None:
    """Keep a committed answer from its caller."""
    if fault is None:
        return
    if fault.answer == "close":
        raise ConnectionDropped
    raise ApiError(int(fault.answer), "deadline_exceeded: context deadline exceeded")


async def _hold(fault: Fault | None) -> None:
    if fault is not None:
        await asyncio.sleep(fault.delay_ms / 1000)


async def _drop(scope: Scope, receive: Receive) -> None:
    """Close the connection with no answer; `servers` puts the means into the scope."""
    scope["extensions"]["roost.abort"]()
    while (await receive())["type"] != "http.disconnect":
        pass


def _render(reply: Reply) -> Response:
    if reply.text is not None:
        return Response(reply.text, reply.status, media_type="text/plain")
    if reply.json is None:
        return Response(status_code=reply.status)
    return JSONResponse(reply.json, reply.status, media_type="application/json; charset=utf-8")

"""The steps that every API request passes, in this order.

Request log, `unavailable` fault, token, rate limit, `slow_before` and `server_error` faults, lease,
handler, flush to disk, `answer_lost` and `slow_after` faults. The order matters: what comes before
the handler leaves nothing committed, what comes after it loses only the answer.
"""

from collections.abc import Callable
from dataclasses import replace

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from local.fly import errors
from local.fly.api.auth import authenticate
from local.fly.api.operation import Call, Operation, Reply
from local.fly.errors import ApiError, ConnectionDropped
from local.fly.faults import Fault, FaultContext
from local.fly.machines import leases
from local.fly.wiring import Backend


class Endpoint:
    """One operation as an ASGI application.

    Once its body has been read, a call runs to its end even when the client has disconnected: a
    provider does not undo work because a connection closed.
    """

    def __init__(self, backend: Backend, operation: Operation) -> None:
        self._backend = backend
        self._operation = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        operation, path = self._operation, request.path_params
        entry = self._backend.requests.open(
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
        context = FaultContext(
            self._operation.action, call.app, call.machine_id, self._operation.route
        )
        fire = self._firing(context)
        _refuse(fire("unavailable"))
        backend, operation = self._backend, self._operation
        call = replace(
            call, token=authenticate(call.headers.get("authorization", ""), backend.settings.token)
        )
        self._limit(call, fire)
        await _hold(fire("slow_before"))
        _refuse(fire("server_error"))
        await self._vanish(call, fire)
        if operation.leased:
            leases.check(call.machine(backend), call.nonce, backend.settings)
        reply = await operation.handler(backend, call)
        await backend.disk.flush()
        _lose(fire("answer_lost"))
        await _hold(fire("slow_after"))
        return reply

    def _firing(self, context: FaultContext) -> Callable[[str], Fault | None]:
        return lambda kind: self._backend.faults.fire(kind, context)

    def _limit(self, call: Call, fire: Callable[[str], Fault | None]) -> None:
        rate = self._operation.rate
        limited = (
            self._backend.settings.limits
            and rate is not None
            and not self._backend.limits.allow(self._operation.action, call.subject, rate)
        )
        if limited or fire("rate_limited"):
            raise errors.rate_limited()

    async def _vanish(self, call: Call, fire: Callable[[str], Fault | None]) -> None:
        machine = self._backend.fleet.find(call.machine_id) if call.machine_id else None
        if machine is not None and fire("machine_vanished"):
            await self._backend.fleet.vanish(machine)


class _Injected(Exception):
    """Raised to answer with a fault's reply in place of the operation's."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply


def _refuse(fault: Fault | None) -> None:
    """Fail the call with the fault's answer, before anything is committed."""
    if fault is None:
        return
    if fault.answer == "close":
        raise ConnectionDropped
    if fault.body is not None:
        raise _Injected(Reply(fault.status, text=fault.body))
    raise ApiError(fault.status, "service unavailable")


def _lose(fault: Fault | None) -> None:
    """Withhold the answer of a call that was committed."""
    if fault is None:
        return
    if fault.answer == "close":
        raise ConnectionDropped
    raise ApiError(int(fault.answer), "deadline_exceeded: context deadline exceeded")


async def _hold(fault: Fault | None) -> None:
    if fault is not None:
        await fault.delay()


async def _drop(scope: Scope, receive: Receive) -> None:
    """Close the connection without an answer; `http_server` put the function in the scope."""
    scope["extensions"]["roost.abort"]()
    while (await receive())["type"] != "http.disconnect":
        pass


def _render(reply: Reply) -> Response:
    if reply.text is not None:
        return Response(reply.text, reply.status, media_type="text/plain")
    if reply.json is None:
        return Response(status_code=reply.status)
    return JSONResponse(reply.json, reply.status, media_type="application/json; charset=utf-8")

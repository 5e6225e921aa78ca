"""The machines of a whole organisation, in pages."""

from datetime import datetime
from typing import TYPE_CHECKING

from local.fly.api import rendering
from local.fly.api.machines import machine_filter
from local.fly.api.operation import Call, Operation, Reply
from local.fly.errors import ApiError
from local.fly.machines.machine import Machine
from local.fly.rate_limits import ACTION
from local.fly.wiring import Backend

if TYPE_CHECKING:
    from local.fly.go_json import JsonObject

PAGE_MAX = 1000


async def list_machines(backend: Backend, call: Call) -> Reply:
    """One page of machines. `cursor` is the last id of the previous page."""
    wanted, since = machine_filter(call), _since(call)
    cursor, limit = call.query.get("cursor", ""), _limit(call)
    found = sorted(
        (
            machine
            for app in backend.fleet.apps(call.path["org"])
            for machine in backend.fleet.visible_machines(app.name)
            if machine.id > cursor and wanted(machine) and _later(machine, since)
        ),
        key=lambda machine: machine.id,
    )
    page = found[:limit]
    summary = call.flag("summary")
    body: JsonObject = {
        "machines": [rendering.org_machine(machine.record, summary=summary) for machine in page],
        "error_regions": [],
    }
    if page:
        body["last_machine_id"] = page[-1].id
        body["last_updated_at"] = max(machine.record.updated_at for machine in page)
    if len(found) > limit:
        body["next_cursor"] = page[-1].id
    return Reply(200, body)


def _limit(call: Call) -> int:
    given = call.query.get("limit", str(PAGE_MAX))
    if not (given.isascii() and given.isdigit()) or int(given) < 1:
        raise ApiError(400, "invalid_argument: limit must be a number above 0")
    return min(int(given), PAGE_MAX)


def _since(call: Call) -> datetime | None:
    """The lower limit for `updated_at`, or None. It is ignored when a cursor is given."""
    given = call.query.get("updated_after")
    if not given or call.query.get("cursor"):
        return None
    try:
        moment = datetime.fromisoformat(given)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ApiError(400, "invalid_argument: updated_after must be an RFC 3339 time")
    return moment


def _later(machine: Machine, since: datetime | None) -> bool:
    return since is None or datetime.fromisoformat(machine.record.updated_at) > since


OPERATIONS = (Operation("org_list", "GET", "/v1/orgs/{org}/machines", list_machines, rate=ACTION),)

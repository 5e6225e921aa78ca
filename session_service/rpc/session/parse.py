"""SessionService's requests, checked and converted. Functions raise InvalidField only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from session_service.domain import spec as specs
from session_service.domain.decision import Request
from session_service.domain.session import Continuity, Key, Mode, PauseDepth
from session_service.domain.wish import Wish
from session_service.errors import InvalidField
from session_service.rpc.fields import Fields, parse_key, request_hash
from session_service.rpc.policy.parse import parse_asked
from session_service.rpc.spec import parse_spec
from session_service.start.facts import Start
from session_service.stop.service import Named

if TYPE_CHECKING:
    from uuid import UUID


_MODES: dict[int, Mode] = {
    pb.START_MODE_UNSPECIFIED: Mode.UNSPECIFIED,
    pb.START_MODE_CONTINUE: Mode.CONTINUE,
    pb.START_MODE_FRESH: Mode.FRESH,
    pb.START_MODE_FAIL_IF_LIVE: Mode.FAIL_IF_LIVE,
}
_CONTINUITIES: dict[int, Continuity | None] = {
    pb.CONTINUITY_UNSPECIFIED: None,
    **{int(level): level for level in Continuity},
}
_DEPTHS: dict[int, PauseDepth] = {
    pb.PAUSE_DEPTH_UNSPECIFIED: PauseDepth.SUSPENDED,
    pb.PAUSE_DEPTH_SUSPENDED: PauseDepth.SUSPENDED,
    pb.PAUSE_DEPTH_STOPPED: PauseDepth.STOPPED,
    pb.PAUSE_DEPTH_CHECKPOINT: PauseDepth.CHECKPOINT,
}


class AboutSession(Protocol):
    """The fields of every request that changes one session."""

    request_id: str
    session_id: str
    etag: str


def parse_start(request: rpc_pb.StartSessionRequest, tenant: str) -> Start:
    """The arguments of StartSession."""
    fields = Fields()
    key = parse_key(fields, tenant, request.key, present=request.HasField("key"))
    spec = parse_spec(fields, "spec", request.spec) if request.HasField("spec") else None
    request_id = fields.optional_uuid("request_id", request.request_id)
    mode = fields.choice("mode", request.mode, _MODES, Mode.UNSPECIFIED)
    least = fields.choice("min_continuity", request.min_continuity, _CONTINUITIES, None)
    token = fields.text("choice_token", request.choice_token, 512)
    if token and mode is not Mode.UNSPECIFIED:
        fields.wrong("mode", "must not be set together with choice_token")
    if request.remember and not token:
        fields.wrong("remember", "needs a choice_token: it saves that choice as the preference")
    asked = None
    if request.HasField("policy") or request.HasField("policy_mask"):
        asked = parse_asked(fields, request.policy, request.policy_mask)
    fields.done()
    wish = Wish(mode, None if spec is None else specs.spec_hash(spec), least)
    body = Request(tenant, "StartSession", request_hash(request), request_id)
    return Start(body, key, wish, spec, asked, token, request.remember)


def parse_preview(request: rpc_pb.PreviewStartRequest, tenant: str) -> Start:
    """The start to preview. Violations name their fields as `start.…`."""
    if not request.HasField("start"):
        raise InvalidField.of("start", "must be set")
    try:
        return parse_start(request.start, tenant)
    except InvalidField as error:
        raise InvalidField(
            [type(item)(f"start.{item.field}", item.description) for item in error.violations]
        ) from None


def parse_named(request: AboutSession, method: str, tenant: str) -> Named:
    """The arguments of a call on one session."""
    fields = Fields()
    named = _named(fields, request, method, tenant)
    fields.done()
    return named


def _named(fields: Fields, request: AboutSession, method: str, tenant: str) -> Named:
    session_id = fields.uuid("session_id", request.session_id)
    request_id = fields.optional_uuid("request_id", request.request_id)
    fields.text("etag", request.etag, 64)
    body = request_hash(request)  # type: ignore[arg-type]  # every AboutSession is a message
    return Named(Request(tenant, method, body, request_id), session_id, request.etag or None)


def parse_pause(request: rpc_pb.PauseSessionRequest, tenant: str) -> tuple[Named, PauseDepth]:
    """The arguments of PauseSession."""
    fields = Fields()
    named = _named(fields, request, "PauseSession", tenant)
    depth = fields.choice("depth", request.depth, _DEPTHS, PauseDepth.SUSPENDED)
    fields.done()
    return named, depth


def parse_resume(request: rpc_pb.ResumeSessionRequest, tenant: str) -> tuple[Named, Wish]:
    """The arguments of ResumeSession: the session, and the least continuity."""
    fields = Fields()
    named = _named(fields, request, "ResumeSession", tenant)
    least = fields.choice("min_continuity", request.min_continuity, _CONTINUITIES, None)
    fields.done()
    return named, Wish(Mode.CONTINUE, None, least)


def parse_session_id(value: str) -> UUID:
    """A session's id."""
    fields = Fields()
    session_id = fields.uuid("session_id", value)
    fields.done()
    return session_id


def parse_find(request: rpc_pb.FindLiveSessionRequest, tenant: str) -> Key:
    """The key of FindLiveSession."""
    fields = Fields()
    key = parse_key(fields, tenant, request.key, present=request.HasField("key"))
    fields.done()
    return key


def parse_touch(request: rpc_pb.TouchSessionRequest) -> tuple[UUID, str]:
    """The session's id, and a word for the user's activity."""
    fields = Fields()
    session_id = fields.uuid("session_id", request.session_id)
    fields.text("activity", request.activity, 64)
    fields.done()
    return session_id, request.activity

"""PolicyService's requests, and the policy of a start, checked and converted.

Functions that take `fields` add violations to it; the others raise InvalidField.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from roost.session.v1 import policy_service_pb2 as rpc_pb
from roost.session.v1 import session_pb2 as pb
from session_service.domain.decision import Request
from session_service.domain.policy import (
    NAMES,
    OnFingerprintChange,
    Persistence,
    Preference,
    Setting,
)
from session_service.domain.session import Continuity
from session_service.policy.service import Update
from session_service.rpc.fields import ID_LIMIT, Fields, request_hash
from session_service.rpc.spec import parse_spec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.field_mask_pb2 import FieldMask

#: The least and the most of each span, in s.
SPANS: Mapping[str, tuple[float, float]] = {
    "idle_timeout": (0.1, 31_622_400),
    "deepen_after": (0.1, 31_622_400),
    "expire_after": (0.1, 316_224_000),
    "grace_period": (0, 2_592_000),
    "max_lifetime": (0.1, 316_224_000),
    "checkpoint_every": (1, 316_224_000),
    "checkpoint_after": (0.1, 316_224_000),
}
#: Spans for which 0 means never.
NEVER = frozenset({"checkpoint_every", "checkpoint_after"})
KEEP_LIMIT = 1000
#: Flags. One that a mask names is set, even if it is false.
FLAGS = ("recover_at_once", "checkpoint_on_stop")
SETTABLE = frozenset({*NAMES, "spec"})
MASK_LIMIT = 64

_PERSISTENCES: dict[int, Persistence | None] = {
    pb.Policy.PERSISTENCE_UNSPECIFIED: None,
    **{
        int(pb.Policy.Persistence.Value(f"PERSISTENCE_{value.name}")): value
        for value in Persistence
    },
}
_CHANGES: dict[int, OnFingerprintChange | None] = {
    pb.Policy.ON_FINGERPRINT_CHANGE_UNSPECIFIED: None,
    **{
        int(pb.Policy.OnFingerprintChange.Value(f"ON_FINGERPRINT_CHANGE_{value.name}")): value
        for value in OnFingerprintChange
    },
}
_CONTINUITIES: dict[int, Continuity | None] = {
    pb.CONTINUITY_UNSPECIFIED: None,
    **{int(level): level for level in Continuity},
}
_PREFERENCES: dict[int, Preference] = {
    int(rpc_pb.Preference.Value(f"PREFERENCE_{value.name}")): value for value in Preference
}


def parse_setting(fields: Fields, path: str, policy: pb.Policy) -> Setting:
    """The values that are set in a policy message. A false `checkpoint_on_stop` counts as not set,
    because the message does not distinguish the two.
    """
    return Setting(
        persistence=fields.choice(f"{path}.persistence", policy.persistence, _PERSISTENCES, None),
        min_continuity=fields.choice(
            f"{path}.min_continuity", policy.min_continuity, _CONTINUITIES, None
        ),
        on_fingerprint_change=fields.choice(
            f"{path}.on_fingerprint_change", policy.on_fingerprint_change, _CHANGES, None
        ),
        recover_at_once=policy.recover_at_once if policy.HasField("recover_at_once") else None,
        checkpoint_on_stop=policy.checkpoint_on_stop or None,
        keep_checkpoints=_count(fields, f"{path}.keep_checkpoints", policy.keep_checkpoints),
        **{
            name: _span(fields, path, name, getattr(policy, name))
            for name in SPANS
            if policy.HasField(name)  # type: ignore[arg-type]  # each is a field of a message
        },
    )


def parse_asked(fields: Fields, policy: pb.Policy, mask: FieldMask) -> Setting | None:
    """The parts of the policy that a start asks for; None if it asks for nothing.

    `mask` names the flags that it asks for. They count even if they are false.
    """
    if policy.HasField("spec"):
        fields.wrong("policy.spec", "must not be set: set the request's own spec")
    named = frozenset(mask.paths)
    if not named <= frozenset(FLAGS):
        fields.wrong("policy_mask", f"must only name {' and '.join(FLAGS)}")
    setting = _flagged(parse_setting(fields, "policy", policy), policy, named)
    return setting if setting != Setting() else None


def _flagged(setting: Setting, policy: pb.Policy, named: frozenset[str]) -> Setting:
    """The setting with the flags that a mask names, false ones included."""
    flags = {name: getattr(policy, name) for name in FLAGS if name in named}
    return replace(setting, **flags)


def _span(fields: Fields, path: str, name: str, value: Duration) -> timedelta:
    low, high = SPANS[name]
    valid = abs(value.nanos) < 1_000_000_000 and value.seconds * value.nanos >= 0
    seconds = value.seconds + value.nanos / 1e9
    if valid and seconds == 0 and name in NEVER:
        return timedelta(0)
    if not valid or not low <= seconds <= high:
        never = ", or 0 for never" if name in NEVER else ""
        fields.wrong(f"{path}.{name}", f"must be between {low:,.10g} s and {high:,.10g} s{never}")
        return timedelta(seconds=low)
    return timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)


def _count(fields: Fields, field: str, value: int) -> int | None:
    if not 0 <= value <= KEEP_LIMIT:
        fields.wrong(field, f"must be between 1 and {KEEP_LIMIT}, or 0 for not set")
        return None
    return value or None


def parse_project(request: rpc_pb.GetProjectPolicyRequest) -> str:
    """The project's id. Raises InvalidField."""
    fields = Fields()
    project_id = fields.text("project_id", request.project_id, ID_LIMIT, required=True)
    fields.done()
    return project_id


def parse_update(
    request: rpc_pb.UpdateProjectPolicyRequest, tenant: str
) -> tuple[Request, str, Update, str | None]:
    """The request, the project's id, the update, and the expected etag (None: any).

    Raises InvalidField.
    """
    fields = Fields()
    request_id = fields.optional_uuid("request_id", request.request_id)
    project_id = fields.text("project_id", request.project_id, ID_LIMIT, required=True)
    fields.text("etag", request.etag, 64)
    if not request.HasField("policy"):
        fields.wrong("policy", "must be set")
    policy = request.policy
    setting = parse_setting(fields, "policy", policy)
    # Any: JSON as the proto maps it.
    spec: dict[str, Any] | None = None
    if policy.HasField("spec"):
        spec = parse_spec(fields, "policy.spec", policy.spec)
    replaced = _mask(fields, request)
    fields.done()
    if replaced is not None:
        setting = _flagged(setting, policy, replaced)
    body = Request(tenant, "UpdateProjectPolicy", request_hash(request), request_id)
    return body, project_id, Update(setting, spec, replaced), request.etag or None


def _mask(fields: Fields, request: rpc_pb.UpdateProjectPolicyRequest) -> frozenset[str] | None:
    """The fields to replace (AIP-134); None: all of them, also those without a value.

    Without a mask, these are the fields that have a value.
    """
    paths = list(request.update_mask.paths)
    if paths == ["*"]:
        return None
    for path in paths[:MASK_LIMIT]:
        if path not in SETTABLE:
            fields.wrong(
                "update_mask",
                f"names {path[:64]!r}: it must name fields of policy that can be set, or be *",
            )
    named = frozenset(paths) & SETTABLE
    if not paths:
        named = frozenset(field.name for field, _ in request.policy.ListFields()) & SETTABLE
        if not named and request.HasField("policy"):
            fields.wrong("policy", "has no value: name the fields to clear in update_mask")
    return named


def parse_user(request: rpc_pb.GetUserPreferenceRequest) -> tuple[str, str]:
    """The ids of the project and the user. Raises InvalidField."""
    fields = Fields()
    project_id = fields.text("project_id", request.project_id, ID_LIMIT, required=True)
    user_id = fields.text("user_id", request.user_id, ID_LIMIT, required=True)
    fields.done()
    return project_id, user_id


def parse_preference(
    request: rpc_pb.SetUserPreferenceRequest, tenant: str
) -> tuple[Request, str, str, Preference]:
    """The request, the ids of the project and the user, and the preference.

    Raises InvalidField.
    """
    fields = Fields()
    request_id = fields.optional_uuid("request_id", request.request_id)
    project_id = fields.text("project_id", request.project_id, ID_LIMIT, required=True)
    user_id = fields.text("user_id", request.user_id, ID_LIMIT, required=True)
    if request.preference == rpc_pb.PREFERENCE_UNSPECIFIED:
        fields.wrong("preference", "must be set; PREFERENCE_ASK means that the user is asked")
    preference = fields.choice(
        "preference", request.preference or rpc_pb.PREFERENCE_ASK, _PREFERENCES, Preference.ASK
    )
    fields.done()
    body = Request(tenant, "SetUserPreference", request_hash(request), request_id)
    return body, project_id, user_id, preference

"""Policies, preferences and choices as messages."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import ParseDict

from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import policy_service_pb2 as rpc_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as service_pb
from session_service.domain import policy as policies
from session_service.domain.policy import NAMES, Source
from session_service.policy.service import etag_of
from session_service.rpc.fields import duration, timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from session_service.domain.plans import Candidate
    from session_service.domain.policy import InForce, Policy, Setting
    from session_service.errors import ChoiceRequired
    from session_service.policy.service import Preferred, Rules

_SPANS = (
    *("idle_timeout", "deepen_after", "expire_after", "grace_period", "max_lifetime"),
    "checkpoint_every",
    "checkpoint_after",
)


def _values(value: Policy | Setting) -> pb.Policy:
    """A policy message with the values that are set."""
    # Any: fields of every type.
    given: dict[str, Any] = {
        name: duration(span) for name in _SPANS if (span := getattr(value, name)) is not None
    }
    if value.persistence is not None:
        given["persistence"] = pb.Policy.Persistence.Value(f"PERSISTENCE_{value.persistence}")
    if value.min_continuity is not None:
        name = f"CONTINUITY_{value.min_continuity.name}"
        given["min_continuity"] = pb.Continuity.Value(name)
    if value.on_fingerprint_change is not None:
        name = f"ON_FINGERPRINT_CHANGE_{value.on_fingerprint_change}"
        given["on_fingerprint_change"] = pb.Policy.OnFingerprintChange.Value(name)
    if value.recover_at_once is not None:
        given["recover_at_once"] = value.recover_at_once
    return pb.Policy(
        checkpoint_on_stop=bool(value.checkpoint_on_stop),
        keep_checkpoints=value.keep_checkpoints or 0,
        **given,
    )


def in_force(value: InForce) -> pb.Policy:
    """A policy in force, with the source of each value."""
    message = _values(value.policy)
    for name in (*NAMES, *(["spec"] if "spec" in value.sources else [])):
        source = value.sources.get(name, Source.DEFAULT)
        message.sources[name] = pb.PolicySource.Value(f"POLICY_SOURCE_{source}")
    return message


@lru_cache(maxsize=1024)
def policy(raw: str) -> pb.Policy:
    """The policy in a session's row, from its JSON text. Cached: the sessions of a project mostly
    have the same text. The caller must not change the message; a field that is set to it gets a
    copy.
    """
    return in_force(policies.load_in_force(raw))


def _spec(value: Mapping[str, Any] | None) -> container_pb.ContainerSpec | None:
    """A spec without the values of its environment variables, which can be secrets.

    Any: JSON as the proto maps it.
    """
    if value is None:
        return None
    shown = {**value, "env": dict.fromkeys(value.get("env", {}), "")}
    return ParseDict(shown, container_pb.ContainerSpec())


def project(project_id: str, rules: Rules) -> rpc_pb.ProjectPolicy:
    """A project's policy: its own values, and the effective policy with the source of each."""
    spec, source = rules.spec
    shown = in_force(rules.in_force(spec=None if spec is None else source))
    if spec is not None:
        shown.spec.MergeFrom(_spec(spec) or container_pb.ContainerSpec())
    own = _values(rules.stored.setting)
    if rules.stored.spec is not None:
        own.spec.MergeFrom(_spec(rules.stored.spec) or container_pb.ContainerSpec())
    return rpc_pb.ProjectPolicy(
        project_id=project_id,
        policy=own,
        effective_policy=shown,
        tier=rules.tier,
        etag=etag_of(rules),
        update_time=timestamp(rules.stored.update_time),
    )


def preference(project_id: str, user_id: str, stored: Preferred) -> rpc_pb.UserPreference:
    """A user's preference."""
    value = rpc_pb.PREFERENCE_UNSPECIFIED
    if stored.preference is not None:
        value = rpc_pb.Preference.Value(f"PREFERENCE_{stored.preference}")
    return rpc_pb.UserPreference(
        project_id=project_id,
        user_id=user_id,
        preference=value,
        update_time=timestamp(stored.update_time),
    )


def candidates(found: Iterable[Candidate]) -> list[service_pb.Candidate]:
    """The candidates of a start. PreviewStart has no choice tokens, CHOICE_REQUIRED has them."""
    return [
        service_pb.Candidate(
            choice=service_pb.Choice.Value(f"CHOICE_{each.choice}"),
            rung=pb.Rung.Value(f"RUNG_{each.rung}"),
            session_id="" if each.session_id is None else str(each.session_id),
            generation=each.generation,
            expected_continuity=pb.Continuity.Value(f"CONTINUITY_{each.expected.name}"),
            last_active_time=timestamp(each.last_active_time),
            checkpoint_id="" if each.checkpoint_id is None else str(each.checkpoint_id),
            age=None if each.age is None else duration(each.age),
            expected_wait_milliseconds=each.wait,
            choice_token=each.token,
            checkpoint_number=each.number,
        )
        for each in found
    ]


def choice_required(error: ChoiceRequired) -> service_pb.ChoiceRequired:
    """The error detail of CHOICE_REQUIRED."""
    return service_pb.ChoiceRequired(
        candidates=candidates(error.offered), expire_time=timestamp(error.expire_time)
    )

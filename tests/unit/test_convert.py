"""The converters, fed with arbitrary messages: a value of ours, or the fields that are wrong."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from container_service.container import spec_hash
from container_service.errors import InvalidRequest
from container_service.fields import Fields as ContainerFields
from container_service.specs import parse_spec as parse_there
from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import policy_service_pb2 as policy_pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from session_service.errors import InvalidField
from session_service.rpc import convert, hashing, idle, listings, policy_fields
from session_service.rpc.fields import Fields
from session_service.rpc.spec_fields import parse_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

texts = st.one_of(
    st.text(max_size=40),
    st.text(string.hexdigits + "-", min_size=30, max_size=40),
    st.uuids().map(str),
    st.just("x" * 200),
    st.sampled_from(["live = true", "create_time desc", "a\0b", "shared"]),
)
ints = st.integers(-(2**31), 2**31 - 1)
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: texts,
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: ints,
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_ENUM: st.one_of(st.integers(0, 9), ints),
}


@st.composite
def filled(draw: st.DrawFn, kind: type[Message]) -> Message:
    """A message with any of its fields filled with anything its types allow."""
    message = kind()
    _fill(draw, message, kind.DESCRIPTOR)
    return message


def _fill(draw: st.DrawFn, message: Any, descriptor: Any) -> None:
    """Fill it in place. Any: protobuf has two kinds of descriptors, alike but for their type."""
    for field in descriptor.fields:
        if not draw(st.booleans()):
            continue
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            kind = field.message_type.fields_by_name["value"].type
            value.update(draw(st.dictionaries(texts, SCALARS[kind], max_size=3)))
        elif field.message_type is not None:
            repeated = hasattr(value, "add")
            target = value.add() if repeated else value
            target.SetInParent()
            _fill(draw, target, field.message_type)
        elif hasattr(value, "extend"):
            value.extend(draw(st.lists(SCALARS[field.type], max_size=3)))
        else:
            setattr(message, field.name, draw(SCALARS[field.type]))


PARSERS: list[tuple[type[Message], Callable[[Any], object]]] = [
    (rpc_pb.StartSessionRequest, lambda m: convert.parse_start(m, "t")),
    (rpc_pb.PreviewStartRequest, lambda m: convert.parse_preview(m, "t")),
    (rpc_pb.PauseSessionRequest, lambda m: convert.parse_pause(m, "t")),
    (rpc_pb.ResumeSessionRequest, lambda m: convert.parse_resume(m, "t")),
    (rpc_pb.StopSessionRequest, lambda m: convert.parse_named(m, "StopSession", "t")),
    (rpc_pb.EndSessionRequest, lambda m: convert.parse_named(m, "EndSession", "t")),
    (rpc_pb.UndeleteSessionRequest, lambda m: convert.parse_named(m, "UndeleteSession", "t")),
    (rpc_pb.FindLiveSessionRequest, lambda m: convert.parse_find(m, "t")),
    (rpc_pb.TouchSessionRequest, convert.parse_touch),
    (rpc_pb.GetSessionRequest, lambda m: convert.parse_session_id(m.session_id)),
    (rpc_pb.PutHoldRequest, idle.parse_put),
    (rpc_pb.ReleaseHoldRequest, idle.parse_release),
    (rpc_pb.WatchSessionRequest, idle.parse_watch),
    (rpc_pb.ListSessionsRequest, lambda m: listings.parse_sessions(m, "t")),
    (rpc_pb.ListDecisionsRequest, lambda m: listings.parse_decisions(m, "t")),
    (policy_pb.GetProjectPolicyRequest, policy_fields.parse_project),
    (policy_pb.UpdateProjectPolicyRequest, lambda m: policy_fields.parse_update(m, "t")),
    (policy_pb.GetUserPreferenceRequest, policy_fields.parse_user),
    (policy_pb.SetUserPreferenceRequest, lambda m: policy_fields.parse_preference(m, "t")),
]


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(PARSERS).flatmap(lambda p: st.tuples(filled(p[0]), st.just(p[1]))))
def test_any_message_is_parsed_or_refused_by_field(
    case: tuple[Message, Callable[[Any], object]],
) -> None:
    """Nothing but InvalidField comes of it, and a refusal names its fields."""
    message, parse = case
    try:
        parse(message)
    except InvalidField as error:
        assert error.violations
        assert all(violation.field for violation in error.violations)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(filled(container_pb.ContainerSpec), st.booleans())
def test_both_services_refuse_the_same_specs(spec: Any, named: bool) -> None:
    """What container_service would refuse must not become a session first; nor the other way."""
    if named:
        spec.image = "roost/counter"
    one, other = _verdicts(spec)
    assert one == other


PATHS = [
    ("/state", True),
    ("/a/b%20c?d=/..", True),
    ("", False),
    ("state", False),
    ("//elsewhere/state", False),
    ("/%2felsewhere", False),
    ("/a/%2E./b", False),
    ("/a%0d", False),
    ("/a%5cb", False),
    ("/a#b", False),
    ("/" + "x" * 1024, False),
]


@pytest.mark.parametrize(("path", "good"), PATHS)
def test_both_services_refuse_the_same_paths_of_state_hooks(path: str, good: bool) -> None:
    spec = container_pb.ContainerSpec(
        image="roost/counter", state_hook=container_pb.StateHook(http_path=path)
    )
    refused = set() if good else {"spec.state_hook.http_path"}
    assert _verdicts(spec) == [refused, refused]


@pytest.mark.parametrize(("path", "good"), PATHS)
def test_both_services_refuse_the_same_paths_of_activity_sources(path: str, good: bool) -> None:
    source = container_pb.ActivitySource(http_path=path)
    refused = set() if good else {"spec.activity.http_path"}
    assert _verdicts(container_pb.ContainerSpec(image="i", activity=source)) == [refused, refused]


@pytest.mark.parametrize(("port", "good"), [(-1, False), (0, False), (1, True), (65_536, False)])
def test_both_services_refuse_the_same_ports_of_activity_sources(port: int, good: bool) -> None:
    source = container_pb.ActivitySource(connections_port=port)
    refused = set() if good else {"spec.activity.connections_port"}
    assert _verdicts(container_pb.ContainerSpec(image="i", activity=source)) == [refused, refused]


def test_the_activity_source_is_no_part_of_what_a_container_is_made_of() -> None:
    """Else a create that is repeated after the source was changed would clash with itself."""
    plain = container_pb.ContainerSpec(image="i")
    source = container_pb.ActivitySource(http_path="/busy")
    asked = container_pb.ContainerSpec(image="i", activity=source)
    one, other = (parse_there(ContainerFields(), spec) for spec in (plain, asked))
    assert spec_hash(one) == spec_hash(other)


def _verdicts(spec: Any) -> list[set[str]]:
    """The fields that each service refuses."""
    here, there = Fields(), ContainerFields()
    parse_spec(here, "spec", spec)
    parse_there(there, spec)
    verdicts: list[set[str]] = []
    for fields in (here, there):
        try:
            fields.done()
        except (InvalidField, InvalidRequest) as error:
            verdicts.append({violation.field for violation in error.violations})
        else:
            verdicts.append(set())
    return verdicts


@given(st.uuids(), st.uuids(), st.sampled_from(["", "default"]))
def test_the_request_hash_is_of_what_is_meant(one: Any, two: Any, slot: str) -> None:
    """The id is not part of the body, and the default slot has two spellings."""

    def request(request_id: str, slot: str, user: str = "u") -> rpc_pb.StartSessionRequest:
        made = rpc_pb.StartSessionRequest(request_id=request_id)
        made.key.project_id, made.key.user_id, made.key.slot = "p", user, slot
        return made

    first = hashing.request_hash(request(str(one), slot))
    assert first == hashing.request_hash(request(str(two), "default"))
    assert first != hashing.request_hash(request(str(one), slot, user="v"))

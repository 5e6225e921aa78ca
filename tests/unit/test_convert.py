"""The converters, fed with arbitrary messages: a domain value, or the fields that are wrong."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from container_service.containers.errors import InvalidRequest
from container_service.containers.model import spec_hash
from container_service.rpc.fields import Fields as ContainerFields
from container_service.rpc.parse_spec import parse_spec as parse_there
from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import checkpoint_service_pb2 as checkpoint_pb
from roost.session.v1 import policy_service_pb2 as policy_pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from session_service.errors import InvalidField
from session_service.rpc import fields as rpc_fields
from session_service.rpc.fields import Fields
from session_service.rpc.policy import parse as policy_parse
from session_service.rpc.session import holds, listings
from session_service.rpc.session import parse as session_parse
from session_service.rpc.spec import parse_spec

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
    (rpc_pb.StartSessionRequest, lambda m: session_parse.parse_start(m, "t")),
    (rpc_pb.PreviewStartRequest, lambda m: session_parse.parse_preview(m, "t")),
    (rpc_pb.PauseSessionRequest, lambda m: session_parse.parse_pause(m, "t")),
    (rpc_pb.ResumeSessionRequest, lambda m: session_parse.parse_resume(m, "t")),
    (rpc_pb.StopSessionRequest, lambda m: session_parse.parse_named(m, "StopSession", "t")),
    (rpc_pb.EndSessionRequest, lambda m: session_parse.parse_named(m, "EndSession", "t")),
    (rpc_pb.UndeleteSessionRequest, lambda m: session_parse.parse_named(m, "UndeleteSession", "t")),
    (rpc_pb.FindLiveSessionRequest, lambda m: session_parse.parse_find(m, "t")),
    (rpc_pb.TouchSessionRequest, session_parse.parse_touch),
    (rpc_pb.GetSessionRequest, lambda m: session_parse.parse_session_id(m.session_id)),
    (rpc_pb.PutHoldRequest, holds.parse_put),
    (rpc_pb.ReleaseHoldRequest, holds.parse_release),
    (rpc_pb.WatchSessionRequest, holds.parse_watch),
    (rpc_pb.ListSessionsRequest, lambda m: listings.parse_sessions(m, "t")),
    (rpc_pb.ListDecisionsRequest, lambda m: listings.parse_decisions(m, "t")),
    (policy_pb.GetProjectPolicyRequest, policy_parse.parse_project),
    (policy_pb.UpdateProjectPolicyRequest, lambda m: policy_parse.parse_update(m, "t")),
    (policy_pb.GetUserPreferenceRequest, policy_parse.parse_user),
    (policy_pb.SetUserPreferenceRequest, lambda m: policy_parse.parse_preference(m, "t")),
]

#: There are so many kinds of messages that each gets a few only with more examples than usual.
MESSAGES = 3 * settings().max_examples


@settings(max_examples=MESSAGES, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(PARSERS).flatmap(lambda p: st.tuples(filled(p[0]), st.just(p[1]))))
def test_any_message_is_parsed_or_rejected_by_field(
    case: tuple[Message, Callable[[Any], object]],
) -> None:
    """No error but InvalidField is raised, and it names its fields."""
    message, parse = case
    try:
        parse(message)
    except InvalidField as error:
        assert error.violations
        assert all(violation.field for violation in error.violations)


@settings(max_examples=MESSAGES, suppress_health_check=[HealthCheck.too_slow])
@given(filled(container_pb.ContainerSpec), st.booleans())
def test_both_services_reject_the_same_specs(spec: Any, named: bool) -> None:
    """session_service must not commit a session whose spec container_service then rejects."""
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
def test_both_services_reject_the_same_paths_of_state_hooks(path: str, good: bool) -> None:
    spec = container_pb.ContainerSpec(
        image="roost/counter", state_hook=container_pb.StateHook(http_path=path)
    )
    rejected = set() if good else {"spec.state_hook.http_path"}
    assert _verdicts(spec) == [rejected, rejected]


@pytest.mark.parametrize(("path", "good"), PATHS)
def test_both_services_reject_the_same_paths_of_activity_sources(path: str, good: bool) -> None:
    source = container_pb.ActivitySource(http_path=path)
    rejected = set() if good else {"spec.activity.http_path"}
    assert _verdicts(container_pb.ContainerSpec(image="i", activity=source)) == [rejected, rejected]


@pytest.mark.parametrize(("port", "good"), [(-1, False), (0, False), (1, True), (65_536, False)])
def test_both_services_reject_the_same_ports_of_activity_sources(port: int, good: bool) -> None:
    source = container_pb.ActivitySource(connections_port=port)
    rejected = set() if good else {"spec.activity.connections_port"}
    assert _verdicts(container_pb.ContainerSpec(image="i", activity=source)) == [rejected, rejected]


def test_the_activity_source_is_not_part_of_the_spec_hash() -> None:
    """Otherwise a create repeated after the source changed would conflict with itself."""
    plain = container_pb.ContainerSpec(image="i")
    source = container_pb.ActivitySource(http_path="/busy")
    asked = container_pb.ContainerSpec(image="i", activity=source)
    one, other = (parse_there(ContainerFields(), spec) for spec in (plain, asked))
    assert spec_hash(one) == spec_hash(other)


def _verdicts(spec: Any) -> list[set[str]]:
    """The fields that each service rejects."""
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
def test_the_request_hash_ignores_the_id_and_the_spelling_of_the_slot(
    one: Any, two: Any, slot: str
) -> None:
    """The request id is not part of it, and the default slot has two spellings."""

    def request(request_id: str, slot: str, user: str = "u") -> rpc_pb.StartSessionRequest:
        made = rpc_pb.StartSessionRequest(request_id=request_id)
        made.key.project_id, made.key.user_id, made.key.slot = "p", user, slot
        return made

    first = rpc_fields.request_hash(request(str(one), slot))
    assert first == rpc_fields.request_hash(request(str(two), "default"))
    assert first != rpc_fields.request_hash(request(str(one), slot, user="v"))


@pytest.mark.parametrize(
    "request_of",
    [
        lambda id: rpc_pb.StopSessionRequest(session_id=id),
        lambda id: checkpoint_pb.CreateCheckpointRequest(session_id=id),
        lambda id: checkpoint_pb.RestoreCheckpointRequest(session_id=id, checkpoint_id=id),
        lambda id: checkpoint_pb.ForkSessionRequest(checkpoint_id=id),
        lambda id: checkpoint_pb.DeleteCheckpointRequest(checkpoint_id=id),
        lambda id: checkpoint_pb.PinCheckpointRequest(checkpoint_id=id, pinned=True),
    ],
    ids=["stop", "create", "restore", "fork", "delete", "pin"],
)
def test_the_request_hash_ignores_the_letter_case_of_ids(
    request_of: Callable[[str], Message],
) -> None:
    id, another = "0190c0de-abcd-7000-8000-00000000abcd", "0190c0de-abcd-7000-8000-00000000abce"
    first = rpc_fields.request_hash(request_of(id))
    assert first == rpc_fields.request_hash(request_of(id.upper()))
    assert first != rpc_fields.request_hash(request_of(another))


def test_the_request_hash_of_a_checkpoint_number_sets_no_checkpoint_id() -> None:
    """`checkpoint_id` is in a oneof: a write of "" would clear the number."""
    first, second = (checkpoint_pb.RestoreCheckpointRequest(number=each) for each in (1, 2))
    assert rpc_fields.request_hash(first) != rpc_fields.request_hash(second)

"""Every message is parsed, or rejected with the names of the invalid fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from container_service.containers.errors import InvalidRequest
from container_service.containers.model import ContainerState, Guest, RestartPolicy, ServicePort
from container_service.rpc import parse
from container_service.rpc.status import status_of
from roost.container.v1 import container_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

PARSERS: dict[type[Any], Callable[[Any], object]] = {
    pb.CreateContainerRequest: lambda m: parse.create_container(m, "birds"),
    pb.GetContainerRequest: lambda m: parse.container_ref(m, "birds"),
    pb.ListContainersRequest: lambda m: parse.list_containers(m, "birds"),
    pb.StartContainerRequest: lambda m: parse.container_and_nonce(m, "birds"),
    pb.SuspendContainerRequest: lambda m: parse.container_and_nonce(m, "birds"),
    pb.ResumeContainerRequest: lambda m: parse.resume_container(m, "birds"),
    pb.StopContainerRequest: lambda m: parse.stop_container(m, "birds"),
    pb.DestroyContainerRequest: lambda m: parse.container_and_nonce(m, "birds"),
    pb.CordonContainerRequest: lambda m: parse.container_and_nonce(m, "birds"),
    pb.UncordonContainerRequest: lambda m: parse.container_and_nonce(m, "birds"),
    pb.WaitContainerRequest: lambda m: parse.wait_container(m, "birds"),
    pb.ExecContainerRequest: lambda m: parse.exec_container(m, ""),
    pb.AcquireLeaseRequest: lambda m: parse.acquire_lease(m, "birds"),
    pb.RefreshLeaseRequest: lambda m: parse.refresh_lease(m, "birds"),
    pb.ReleaseLeaseRequest: lambda m: parse.container_and_nonce(m, "birds", required=True),
}

TEXT = st.one_of(
    st.text(max_size=70),
    st.sampled_from(
        ["birds", "roost-wren-1", "1857156b526dd8", "tcp", "shared", "/", "roost/base"]
    ),
)
INT32 = st.one_of(st.integers(-(2**31), 2**31 - 1), st.sampled_from([0, 1, 256, 2048, 8080]))
INT64 = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 700))
SCALARS = {
    FieldDescriptor.CPPTYPE_STRING: TEXT,
    FieldDescriptor.CPPTYPE_INT32: INT32,
    FieldDescriptor.CPPTYPE_INT64: INT64,
    FieldDescriptor.CPPTYPE_ENUM: st.one_of(st.integers(0, 13), INT32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor) -> Message:
    """Any message of this type that can arrive, with unknown enum values too."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if draw(st.booleans()):
            fill(draw, message, field)
    return message


def fill(draw: st.DrawFn, message: Message, field: FieldDescriptor) -> None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        getattr(message, field.name).update(draw(st.dictionaries(TEXT, TEXT, max_size=3)))
    elif field.is_repeated and kind is not None:
        getattr(message, field.name).extend(draw(st.lists(messages(kind), max_size=2)))
    elif field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(SCALARS[field.cpp_type], max_size=3)))
    elif kind is not None:
        getattr(message, field.name).CopyFrom(draw(messages(kind)))
    else:
        setattr(message, field.name, draw(SCALARS[field.cpp_type]))


@given(st.data())
@pytest.mark.parametrize("kind", PARSERS, ids=lambda kind: kind.__name__)
def test_any_message_is_parsed_or_rejected(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(messages(cast(Any, kind.DESCRIPTOR)))
    try:
        PARSERS[kind](message)
    except InvalidRequest as rejected:
        assert rejected.violations
        # The status must fit into the trailers, whatever the caller sent.
        assert len(status_of(rejected).SerializeToString()) < 6000


def wanted(**changes: Any) -> pb.CreateContainerRequest:
    spec = {"image": "roost/base"} | changes.pop("spec", {})
    request: dict[str, Any] = {"name": "roost-wren-1", "spec": pb.ContainerSpec(**spec)}
    return pb.CreateContainerRequest(**request | changes)


GUEST = pb.Guest
FAULTS: list[tuple[pb.CreateContainerRequest, str]] = [
    (pb.CreateContainerRequest(name="a"), "spec"),
    (wanted(name=""), "name"),
    (wanted(name="Upper"), "name"),
    (wanted(name="a" * 64), "name"),
    (wanted(name="-a"), "name"),
    (wanted(app="../x"), "app"),
    (wanted(labels={"a b": "c"}), 'labels["a b"]'),
    (wanted(labels={"a": "c" * 257}), 'labels["a"]'),
    (wanted(labels={"roost_spec_hash": "c"}), 'labels["roost_spec_hash"]'),
    (wanted(labels={str(n): "c" for n in range(65)}), "labels"),
    (wanted(spec={"image": ""}), "spec.image"),
    (wanted(spec={"image": "two words"}), "spec.image"),
    (wanted(spec={"image": "x" * 513}), "spec.image"),
    (wanted(spec={"env": {"1A": "x"}}), 'spec.env["1A"]'),
    (wanted(spec={"env": {"A": "x\0"}}), 'spec.env["A"]'),
    (wanted(spec={"region": "x\n"}), "spec.region"),
    (wanted(spec={"restart_policy": 9}), "spec.restart_policy"),
    (wanted(spec={"stop_timeout": Duration(seconds=301)}), "spec.stop_timeout"),
    (wanted(spec={"stop_timeout": Duration(seconds=-1)}), "spec.stop_timeout"),
    (wanted(spec={"guest": GUEST(memory_mb=4096)}), "spec.guest.memory_mb"),
    (wanted(spec={"guest": GUEST(memory_mb=-1)}), "spec.guest.memory_mb"),
    (wanted(spec={"guest": GUEST(memory_mb=300)}), "spec.guest.memory_mb"),
    (wanted(spec={"guest": GUEST(cpus=2, memory_mb=256)}), "spec.guest.memory_mb"),
    (wanted(spec={"guest": GUEST(cpu_kind="performance", cpus=2)}), "spec.guest.memory_mb"),
    (wanted(spec={"guest": GUEST(cpus=3)}), "spec.guest.cpus"),
    (wanted(spec={"guest": GUEST(cpus=-1)}), "spec.guest.cpus"),
    (wanted(spec={"guest": GUEST(cpu_kind="big")}), "spec.guest.cpu_kind"),
    (wanted(spec={"services": [pb.ServicePort()]}), "spec.services[0].internal_port"),
    (
        wanted(spec={"services": [pb.ServicePort(internal_port=1, protocol="sctp")]}),
        "spec.services[0].protocol",
    ),
    (wanted(spec={"services": [pb.ServicePort(internal_port=1)] * 2}), "spec.services"),
    (wanted(spec={"mounts": [pb.Mount(path="/data")]}), "spec.mounts[0].volume_id"),
    (wanted(spec={"mounts": [pb.Mount(volume_id="v", path="data")]}), "spec.mounts[0].path"),
    (wanted(spec={"mounts": [pb.Mount()] * 2}), "spec.mounts"),
    (wanted(spec={"state_hook": pb.StateHook(http_path="x")}), "spec.state_hook.http_path"),
    (wanted(spec={"state_hook": pb.StateHook(command="")}), "spec.state_hook.command"),
]


@pytest.mark.parametrize(("request_", "field"), FAULTS, ids=lambda value: str(value)[:40])
def test_an_invalid_field_is_named(request_: pb.CreateContainerRequest, field: str) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        parse.create_container(request_, "birds")
    assert [violation.field for violation in rejected.value.violations] == [field]


def test_one_error_names_every_invalid_field() -> None:
    request = pb.AcquireLeaseRequest(
        app="UPPER", container_id="", ttl=Duration(seconds=0), wait_timeout=Duration(seconds=-3)
    )
    with pytest.raises(InvalidRequest) as rejected:
        parse.acquire_lease(request, "")
    fields = [violation.field for violation in rejected.value.violations]
    assert fields == ["app", "container_id", "ttl", "wait_timeout"]


def test_without_a_default_app_a_request_must_name_one() -> None:
    with pytest.raises(InvalidRequest, match="ROOST_FLY_APP"):
        parse.container_ref(pb.GetContainerRequest(container_id="a"), "")


def test_unset_fields_get_their_defaults() -> None:
    wish = parse.create_container(wanted(), "birds")
    assert wish.app == "birds"
    assert wish.spec.guest == Guest("shared", 1, 256)
    assert wish.spec.services == (ServicePort(8080, "tcp", autostart=True),)
    assert wish.spec.restart_policy is RestartPolicy.ON_FAILURE
    assert wish.spec.stop_timeout_seconds == 5.0
    assert not wish.spec.ephemeral_root_filesystem


def test_an_explicit_default_equals_an_unset_field() -> None:
    said = wanted(
        spec={
            "guest": GUEST(cpu_kind="shared", cpus=1, memory_mb=256),
            "services": [pb.ServicePort(internal_port=8080, protocol="tcp")],
            "restart_policy": pb.RESTART_POLICY_ON_FAILURE,
            "stop_timeout": Duration(seconds=5),
        }
    )
    assert parse.create_container(said, "birds") == parse.create_container(wanted(), "birds")


def test_a_wait_accepts_only_waitable_states() -> None:
    request = pb.WaitContainerRequest(container_id="a")
    assert parse.wait_container(request, "birds")[1] == {ContainerState.STARTED}
    request.states.extend([pb.CONTAINER_STATE_STOPPED, pb.CONTAINER_STATE_STARTING, cast(Any, 99)])
    with pytest.raises(InvalidRequest) as rejected:
        parse.wait_container(request, "birds")
    assert [v.field for v in rejected.value.violations] == ["states[1]", "states[2]"]

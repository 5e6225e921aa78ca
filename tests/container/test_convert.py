"""Whatever message comes: it is understood, or refused with the fields that are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from container_service import convert
from container_service.container import ContainerState, Guest, RestartPolicy, ServicePort
from container_service.errors import InvalidRequest
from container_service.status import status_of
from roost.container.v1 import container_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

PARSERS: dict[type[Any], Callable[[Any], object]] = {
    pb.CreateContainerRequest: lambda m: convert.parse_create(m, "birds"),
    pb.GetContainerRequest: lambda m: convert.parse_ref(m, "birds"),
    pb.ListContainersRequest: lambda m: convert.parse_list(m, "birds"),
    pb.StartContainerRequest: lambda m: convert.parse_ref_and_nonce(m, "birds"),
    pb.SuspendContainerRequest: lambda m: convert.parse_ref_and_nonce(m, "birds"),
    pb.ResumeContainerRequest: lambda m: convert.parse_resume(m, "birds"),
    pb.StopContainerRequest: lambda m: convert.parse_stop(m, "birds"),
    pb.DestroyContainerRequest: lambda m: convert.parse_ref_and_nonce(m, "birds"),
    pb.CordonContainerRequest: lambda m: convert.parse_ref_and_nonce(m, "birds"),
    pb.UncordonContainerRequest: lambda m: convert.parse_ref_and_nonce(m, "birds"),
    pb.WaitContainerRequest: lambda m: convert.parse_wait(m, "birds"),
    pb.ExecContainerRequest: lambda m: convert.parse_exec(m, ""),
    pb.AcquireLeaseRequest: lambda m: convert.parse_acquire(m, "birds"),
    pb.RefreshLeaseRequest: lambda m: convert.parse_refresh(m, "birds"),
    pb.ReleaseLeaseRequest: lambda m: convert.parse_ref_and_nonce(m, "birds", required=True),
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
    """Any message of this type that could come over the wire, open enums and all."""
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
def test_any_message_is_understood_or_refused(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(messages(cast(Any, kind.DESCRIPTOR)))
    try:
        PARSERS[kind](message)
    except InvalidRequest as refused:
        assert refused.violations
        # What the caller is told has to fit into the trailers, whatever the caller sent.
        assert len(status_of(refused).SerializeToString()) < 6000


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
def test_a_wrong_field_is_named(request_: pb.CreateContainerRequest, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        convert.parse_create(request_, "birds")
    assert [violation.field for violation in refused.value.violations] == [field]


def test_every_wrong_field_is_named_at_once() -> None:
    request = pb.AcquireLeaseRequest(
        app="UPPER", container_id="", ttl=Duration(seconds=0), wait_timeout=Duration(seconds=-3)
    )
    with pytest.raises(InvalidRequest) as refused:
        convert.parse_acquire(request, "")
    fields = [violation.field for violation in refused.value.violations]
    assert fields == ["app", "container_id", "ttl", "wait_timeout"]


def test_without_a_default_the_app_must_be_named() -> None:
    with pytest.raises(InvalidRequest, match="ROOST_FLY_APP"):
        convert.parse_ref(pb.GetContainerRequest(container_id="a"), "")


def test_what_is_not_said_is_the_default() -> None:
    wish = convert.parse_create(wanted(), "birds")
    assert wish.app == "birds"
    assert wish.spec.guest == Guest("shared", 1, 256)
    assert wish.spec.services == (ServicePort(8080, "tcp", autostart=True),)
    assert wish.spec.restart_policy is RestartPolicy.ON_FAILURE
    assert wish.spec.stop_timeout_seconds == 5.0
    assert not wish.spec.ephemeral_root_filesystem


def test_saying_the_default_is_the_same_as_not_saying_it() -> None:
    said = wanted(
        spec={
            "guest": GUEST(cpu_kind="shared", cpus=1, memory_mb=256),
            "services": [pb.ServicePort(internal_port=8080, protocol="tcp")],
            "restart_policy": pb.RESTART_POLICY_ON_FAILURE,
            "stop_timeout": Duration(seconds=5),
        }
    )
    assert convert.parse_create(said, "birds") == convert.parse_create(wanted(), "birds")


def test_a_wait_names_states_that_can_be_waited_for() -> None:
    request = pb.WaitContainerRequest(container_id="a")
    assert convert.parse_wait(request, "birds")[1] == {ContainerState.STARTED}
    request.states.extend([pb.CONTAINER_STATE_STOPPED, pb.CONTAINER_STATE_STARTING, cast(Any, 99)])
    with pytest.raises(InvalidRequest) as refused:
        convert.parse_wait(request, "birds")
    assert [v.field for v in refused.value.violations] == ["states[1]", "states[2]"]
